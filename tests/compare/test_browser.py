"""The report in a real browser: a phone and a wide screen, in the light and in the dark, by keyboard.

    full_result --> page --> Chromium (system's own, through Playwright)
                                |- asks nobody, says nothing on its console
                                |- axe: names, roles, captions, contrast
                                `- nothing wider than the screen, every drawing drawn

Chromium is Debian's package `chromium`, or where CHROMIUM says.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from compare.analysis import Analysis
from compare.report.page import page as report_page
from tests.compare.made_up import full_result

PHONE, DESK = (390, 844), (1400, 1000)
MOST = 2_000_000  # bytes of a report
SCREENS = pytest.mark.parametrize("screen", [PHONE, DESK], ids=["phone", "desk"])
LIGHTS = pytest.mark.parametrize("light", ["light", "dark"])
Opened = Callable[..., Page]


def require_chromium() -> str:
    """Without it: fails where CI=true, since it should be there, and skips loudly elsewhere."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program:
        return program
    text = "no chromium on PATH, so nobody has looked at the report: install the Debian package chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = require_chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows, every scenario: every kind of element."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    rows = ["prefork", "fork", "iterative", "select", "tornado", "uvloop", "libev", "direct", "relay", "aead"]
    path.write_text(report_page(Analysis(full_result(rows, rounds=2))), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    """Opens a report; afterwards it has asked for nothing but itself, and complained of nothing."""
    asked: list[str] = []
    said: list[str] = []
    opened_ones: list[str] = []
    contexts = []

    def open_it(screen: tuple[int, int] = DESK, light: Any = "light", **more: Any) -> Page:
        path = more.pop("path", report)
        context = browser.new_context(
            viewport=ViewportSize(width=screen[0], height=screen[1]), color_scheme=light, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        opened_ones.append(path.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith("data:")] == opened_ones
    assert said == []


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")


@pytest.mark.slow
def test_all_models_fit(opened: Opened, tmp_path: Path) -> None:
    """Nineteen models, peers, baselines, every scenario: small, drawn, and no wider than the screen."""
    path = tmp_path / "report.html"
    path.write_text(report_page(Analysis(full_result())), encoding="utf-8")
    assert path.stat().st_size < MOST
    for screen in (PHONE, DESK):
        page = opened(screen, path=path)
        check_drawings(page, screen[0])
        check_width(page, screen[0])


@SCREENS
def test_few_models_fit(opened: Opened, screen: tuple[int, int]) -> None:
    page = opened(screen)
    check_drawings(page, screen[0])
    check_width(page, screen[0])


def check_drawings(page: Page, width: int) -> None:
    """Of the two that each section has one is shown, and it shows something, within its section."""
    drawn = page.evaluate(
        """() => [...document.querySelectorAll("section figure:not(.code)")].map(figure =>
            [...figure.querySelectorAll("svg")].map(svg => {
                const outer = svg.getBoundingClientRect()
                const around = svg.closest("section").getBoundingClientRect()
                const marks = [...svg.querySelectorAll("path, line, text, rect")]
                const places = marks.map(mark => [mark, mark.getBoundingClientRect()])
                return {
                    width: outer.width, height: outer.height, right: outer.right,
                    marks: places.filter(([, at]) => at.width || at.height).length,
                    outside: places.filter(([, at]) => at.width && (at.right > around.right - 3
                        || at.left < around.left + 3 || at.bottom > around.bottom || at.top < around.top))
                        .map(([mark]) => svg.closest("section").id + " " + mark.outerHTML),
                }
            }))"""
    )
    assert len(drawn) >= 17
    for both in drawn:
        shown = [svg for svg in both if svg["width"]]
        assert len(shown) == 1
        assert shown[0]["height"] > 100
        assert shown[0]["marks"] >= 20
        assert shown[0]["right"] <= width
        assert shown[0]["outside"] == []


def check_width(page: Page, width: int) -> None:
    """Only tables and source scroll sideways, by themselves."""
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('#summary .scroll').clientWidth") <= width


@pytest.mark.parametrize(
    ("screen", "light"),
    [pytest.param(PHONE, "dark", marks=pytest.mark.slow), (DESK, "light")],
    ids=["phone-dark", "desk-light"],
)
def test_it_is_accessible(opened: Opened, screen: tuple[int, int], light: str) -> None:
    """By axe's rules: contrast, names and roles, headers of tables, the order of headings, landmarks."""
    page = opened(screen, light)
    unfold(page)
    found = Axe().run(page).response
    wrong = [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        for node in violation["nodes"][:3]
    ]
    assert wrong == []
    assert {rule["id"] for rule in found["passes"]} >= {"color-contrast", "td-headers-attr", "region"}


@LIGHTS
def test_drawings_can_be_told_from_the_paper(opened: Opened, light: str) -> None:
    """What axe does not look at: text of drawings 4.5 to 1, lines and points 3 to 1 (WCAG 1.4.3, 1.4.11)."""
    page = opened(DESK, light)
    poor = page.evaluate(
        """() => {
            const brush = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
            const colour = css => {
                brush.fillStyle = css; brush.fillRect(0, 0, 1, 1)
                return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3)
            }
            const light = css => {
                const [r, g, b] = colour(css).map(part => {
                    part /= 255
                    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
                })
                return 0.2126 * r + 0.7152 * g + 0.0722 * b
            }
            const contrast = (a, b) => {
                const [high, low] = [light(a), light(b)].sort((x, y) => y - x)
                return (high + 0.05) / (low + 0.05)
            }
            const paper = getComputedStyle(document.querySelector("section")).backgroundColor
            const poor = new Set()
            for (const svg of document.querySelectorAll(".wide svg")) {
                const place = svg.closest("section").id
                for (const text of svg.querySelectorAll("text")) {
                    const ink = getComputedStyle(text).fill
                    if (place !== "beats" && contrast(ink, paper) < 4.5) poor.add(`${place}: text ${ink}`)
                }
                for (const mark of svg.querySelectorAll("path[data-row]")) {
                    const style = getComputedStyle(mark)
                    const paint = mark.getAttribute("fill") || mark.getAttribute("stroke")
                    if (place === "beats" || paint === "var(--pale)") continue
                    if (paint === "var(--system)") continue  // beside --user, and said in figures
                    const ink = style.fill === "none" ? style.stroke : style.fill
                    if (contrast(ink, paper) < 3) poor.add(`${place}: ${paint} ${ink}`)
                }
            }
            for (const which of ["won", "lost"]) {
                const style = getComputedStyle(document.documentElement)
                const of = name => style.getPropertyValue(name)
                if (contrast(of(`--on-${which}`), of(`--${which}`)) < 4.5) poor.add(`beats: ${which}`)
            }
            return [...poor]
        }"""
    )
    assert poor == []


def test_dark_is_dark(opened: Opened) -> None:
    grounds = [
        opened(DESK, light).evaluate("getComputedStyle(document.body).backgroundColor")
        for light in ("light", "dark")
    ]
    levels = [sum(map(int, re.findall(r"\d+", ground)[:3])) / 3 for ground in grounds]
    assert levels[0] > 230
    assert levels[1] < 40


def test_it_can_be_read_by_keyboard(opened: Opened) -> None:
    """Tab comes by everything that can be operated, and Enter opens and sorts."""
    page = opened()
    shown = """() => [...document.querySelectorAll("summary, th button, a[href], select")]
        .filter(one => one.checkVisibility()).length"""
    reached = set()
    for _ in range(page.evaluate(shown) + 60):
        page.keyboard.press("Tab")
        kind, number = page.evaluate(
            """() => [document.activeElement.tagName,
                [...document.querySelectorAll("*")].indexOf(document.activeElement)]"""
        )
        if kind in ("SUMMARY", "BUTTON", "A", "SELECT"):
            reached.add(number)
    assert len(reached) == page.evaluate(shown)
    numbers = page.locator("#load summary")
    numbers.focus()
    page.keyboard.press("Enter")
    assert page.locator("#load table").first.is_visible()
    head = page.locator("#load table").first.locator("th button").nth(1)
    head.focus()
    page.keyboard.press("Enter")
    cells = page.locator("#load table").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
    found = [float(cell.replace(",", "")) for cell in cells if cell[0].isdigit()]
    assert found == sorted(found)
    assert cells[-1] == "!"  # what has no number is last
    page.keyboard.press("Enter")
    assert head.locator("..").get_attribute("aria-sort") == "descending"
    cells = page.locator("#load table").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
    again = [float(cell.replace(",", "")) for cell in cells if cell[0].isdigit()]
    assert again == found[::-1]


def test_tables_and_drawings_have_names(opened: Opened) -> None:
    page = opened()
    assert page.evaluate(
        """() => [...document.querySelectorAll("table")].every(table => table.caption.textContent.trim()
            && [...table.tHead.rows[0].cells].every(head => head.scope === "col")
            && [...table.tBodies[0].rows].every(row => row.cells[0].scope === "row"))"""
    )
    assert page.evaluate(
        """() => [...document.querySelectorAll("figure:not(.code) svg")].every(svg =>
            svg.getAttribute("role") === "img" && svg.getAttribute("aria-labelledby").split(" ")
                .every(id => document.getElementById(id).textContent.length > 5))"""
    )
    named = page.evaluate("() => [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(named) == len(set(named))


def test_one_model_can_be_followed(opened: Opened) -> None:
    """Chosen, or pointed at; and let go of."""
    page = opened()
    page.locator("#follow").select_option("prefork")
    mark = page.locator("#load .wide svg path[data-row=prefork]").first
    other = page.locator("#load .wide svg path[data-row=tornado]").first
    assert mark.evaluate("one => one.classList.contains('on')")
    other.evaluate("one => Promise.all(one.getAnimations().map(each => each.finished))")
    assert float(other.evaluate("one => getComputedStyle(one).opacity")) < 0.5
    assert float(mark.evaluate("one => getComputedStyle(one).opacity")) == 1
    page.locator("#follow").select_option("")
    assert not page.evaluate("document.body.classList.contains('following')")
    page.locator("#connections .wide svg path[data-row=fork]").last.hover()
    assert page.locator("#summary tr.on th").all_inner_texts() == ["fork", "fork"]


def test_it_can_be_read_without_a_script(opened: Opened) -> None:
    page = opened(PHONE, java_script_enabled=False)
    assert not page.locator(".follow").is_visible()
    assert page.locator("#load svg").first.is_visible()
    page.locator("#load summary").click()
    assert page.locator("#load table").first.is_visible()
    assert page.locator("th button").count() == 0
