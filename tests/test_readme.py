"""README promises: the model that it shows is a whole one, and its links lead somewhere."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import MODELS
from tests.harness.rig import LOCAL, SERVE, Rig
from tunnel import config
from tunnel.cli import build_parser
from tunnel.errors import ConfigError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def in_readme(pattern: str) -> str:
    found = re.search(pattern, README, re.DOTALL)
    assert found, pattern
    return found[1]


@pytest.mark.parametrize("end", [SERVE, LOCAL])
def test_a_model_is_added_with_one_file_and_one_line(tmp_path: Path, end: str) -> None:
    """In a copy of `models/`, with the file and the line as they stand in README."""
    models = tmp_path / "models"
    shutil.copytree(ROOT / "models", models, ignore=shutil.ignore_patterns("__pycache__"))
    (models / "bounded.py").write_text(in_readme(r"```python\n(.*?)```"))
    registry = (models / "__init__.py").read_text()
    line = in_readme(r"`(Model\(\"bounded\".*?\),)`")
    before, opening, after = registry.partition("    for model in (\n")
    assert opening
    (models / "__init__.py").write_text(f"{before}{opening}        {line}\n{after}")
    # PYTHONSAFEPATH: not the working directory first, where the models without the new one are
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
    with Rig(tmp_path, "bounded", end, environment=environment) as rig:
        rig.transfer()
        rig.tunnel.terminate()
        assert rig.tunnel.wait(10) == 0


def test_the_page_of_models_is_about_all_of_them_and_its_tests_are_there() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    tree, table = page.partition("## Who blocks where")[::2]
    assert [name for name in MODELS if not re.search(rf"(?<![\w-]){name}(?![\w-])", tree)] == []
    assert [name for name in MODELS if f"`{name}`" not in table.partition("\n## ")[0]] == []
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_the_summary_is_the_committed_results(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(README, encoding="utf-8")
    words = ["report", "docs/report", "--out", str(tmp_path / "report"), "--into", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "compare", *words], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert page.read_text(encoding="utf-8") == README, "compare report docs/report --into README.md"


def test_links_within_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def rows_of_configuration() -> dict[str, list[str]]:
    """The cells of each row of docs/configuration.md, by its key."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(?: \*r\*)? \|(.*)\|$", page, re.MULTILINE)
    return {key: [cell.strip() for cell in cells.split("|")] for key, cells in rows}


def flags_of_servers() -> set[str]:
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {
        word
        for name in (config.SERVE, config.LOCAL, config.FORWARD)
        for action in commands.choices[name]._actions
        for word in action.option_strings
        if word not in ("-h", "--help", "--config")
    }


def test_the_page_of_options_has_every_key_and_every_flag() -> None:
    rows = rows_of_configuration()
    assert set(rows) == set(config.FIELDS)
    named = {flag for flags, *_ in rows.values() for flag in re.findall(r"--[a-z-]+", flags)}
    assert named == flags_of_servers()
    for key, (flags, *_) in rows.items():
        expected = "--" + key.replace("_", "-")
        assert not flags or expected in flags or key == "password", key


BETWEEN = re.compile(r"from ([\d.]+) to (\d+)")


def test_the_page_of_options_has_the_bounds_that_are_there() -> None:
    """As the messages say them, and as they are kept: one step further is an error."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").partition("## Bounds")[2]
    rows = re.findall(r"^\| ([\d.]+) \| (\d+) \| (.*) \|$", page, re.MULTILINE)
    bounds = {key: (low, high) for low, high, keys in rows for key in re.findall(r"`(\w+)`", keys)}
    said = {key: BETWEEN.search(field.expected) for key, field in config.FIELDS.items()}
    assert bounds == {key: found.groups() for key, found in said.items() if found}
    for key, bound in bounds.items():
        before = "h:" if key in ("listen", "target") else ""
        step = 0.0001 if "." in bound[0] else 1
        for value, further in zip(bound, (-step, step), strict=True):
            config.check(key, before + value, key)
            with pytest.raises(ConfigError):
                config.check(key, f"{before}{float(value) + further:.{4 if step < 1 else 0}f}", key)


def test_the_page_of_options_has_the_defaults_that_are_there() -> None:
    rows = rows_of_configuration()
    for key, value in config.DEFAULTS.items():
        shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
        assert rows[key][1] == shown, key
