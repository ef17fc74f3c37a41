"""Log lines: one each, forged by nobody, and worth no connection."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.log import LEVELS, Log

TEXT = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>\w+) (?P<model>[\w-]+)\[(?P<pid>\d+)\]"
    r"( (?P<subject>\S+):)? (?P<message>.*)\n"
)


class Captured:
    """A Log whose lines can be read."""

    def __init__(self, as_json: bool = False, level: str = "debug") -> None:
        self.reading, writing = os.pipe()
        self.written = Log()
        self.written.configure("prefork", level, as_json)
        self.written.fd = writing

    def read(self) -> str:
        return os.read(self.reading, 1 << 16).decode()

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.written.fd)


@pytest.fixture
def text() -> Iterator[Captured]:
    captured = Captured()
    yield captured
    captured.close()


@pytest.fixture
def as_json() -> Iterator[Captured]:
    captured = Captured(as_json=True)
    yield captured
    captured.close()


def test_a_text_line_says_when_how_bad_who_and_what(text: Captured) -> None:
    text.written.warning("wrong tag", "127.0.0.1:5000")
    line = TEXT.fullmatch(text.read())
    assert line
    assert (line["level"], line["model"]) == ("warning", "prefork")
    assert (int(line["pid"]), line["subject"], line["message"]) == (
        os.getpid(),
        "127.0.0.1:5000",
        "wrong tag",
    )


def test_a_json_line_says_the_same(as_json: Captured) -> None:
    as_json.written.warning("wrong tag", "127.0.0.1:5000")
    line = json.loads(as_json.read())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "model": "prefork",
        "pid": os.getpid(),
        "subject": "127.0.0.1:5000",
        "message": "wrong tag",
    }


def test_a_line_without_a_subject_has_none(text: Captured, as_json: Captured) -> None:
    text.written.info("stopped")
    as_json.written.info("stopped")
    line = TEXT.fullmatch(text.read())
    assert line
    assert (line["subject"], line["message"]) == (None, "stopped")
    assert "subject" not in json.loads(as_json.read())


@pytest.mark.parametrize("threshold", LEVELS)
def test_only_what_is_wanted_is_written(threshold: str) -> None:
    captured = Captured(level=threshold)
    for level in LEVELS:
        getattr(captured.written, level)(f"said at {level}")
    wanted = LEVELS[LEVELS.index(threshold) :]
    assert re.findall(r"said at (\w+)", captured.read()) == list(wanted)
    captured.close()


@given(st.text(max_size=100), st.booleans())
def test_whatever_a_peer_calls_itself_it_is_one_printable_line(name: str, as_json: bool) -> None:
    captured = Captured(as_json)
    captured.written.info(f"cannot connect to {name}", "peer")
    line = captured.read()
    captured.close()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    if as_json:
        assert json.loads(line)["message"] == f"cannot connect to {name}"
    else:
        match = TEXT.fullmatch(line)
        assert match
        assert match["message"].startswith("cannot connect to ")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("line\u2028sep", r"line\u2028sep"),
        ("\udcff", r"\udcff"),
        ("naïve 名", "naïve 名"),
        ("it's", "it's"),
    ],
)
def test_what_could_forge_or_hide_a_line_is_escaped(text: Captured, said: str, shown: str) -> None:
    text.written.info(said)
    assert text.read().endswith(f" {shown}\n")


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_full_disk_costs_lines_and_nothing_else(as_json: bool, tmp_path: Path) -> None:
    log = Log()
    log.configure("fork", "info", as_json)
    with open("/dev/full", "wb", buffering=0) as full:
        log.fd = full.fileno()
        for _ in range(3):
            log.info("lost")
    with open(tmp_path / "log", "wb", buffering=0) as file:
        log.fd = file.fileno()
        log.info("found")
        log.info("as usual")
    first, second = (tmp_path / "log").read_text().splitlines()
    assert "found (3 lines before this one were lost)" in first
    assert "as usual" in second
    assert "lost" not in second


def test_a_closed_pipe_and_a_closed_descriptor_cost_lines_only() -> None:
    log = Log()
    reading, log.fd = os.pipe()
    os.close(reading)
    log.error("nobody reads")
    os.close(log.fd)
    log.error("nothing there")
    assert log.lost.take() == 2


def test_one_line_that_was_lost_is_one_line(text: Captured) -> None:
    text.written.lost.add(1)
    text.written.info("found")
    assert text.read().endswith(" found (1 line before this one was lost)\n")


@pytest.mark.parametrize("shared", [True, False], ids=["eventfd", "none"])
def test_lines_that_children_lose_are_counted_with_their_parents(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that has ended can report nothing. Without an eventfd its own count ends with it."""
    if not shared:
        monkeypatch.delattr("os.eventfd")
    captured = Captured()
    captured.written.lost.share()
    with open("/dev/full", "wb", buffering=0) as full:
        writing, captured.written.fd = captured.written.fd, full.fileno()
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                captured.written.error("lost by a child")
                os._exit(0)
            os.waitpid(pid, 0)
        captured.written.error("lost by the parent")
    captured.written.fd = writing
    captured.written.info("found")
    captured.written.info("as usual")
    first, second = captured.read().splitlines()
    captured.close()
    expected = "4 lines before this one were lost" if shared else "1 line before this one was lost"
    assert first.endswith(f" found ({expected})")
    assert second.endswith(" as usual")


def test_log_that_goes_elsewhere_keeps_its_descriptor(tmp_path: Path) -> None:
    """A thread that is about to write has its number already: it must not become a client's."""
    log = Log()
    log.open(str(tmp_path / "first"))
    fd = log.fd
    for path in (tmp_path / "second", None, tmp_path / "third"):
        log.open(None if path is None else str(path))
        assert log.fd == fd
        there, expected = os.fstat(fd), os.fstat(2) if path is None else os.stat(path)
        assert (there.st_dev, there.st_ino) == (expected.st_dev, expected.st_ino)
        assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_line_is_written_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes share the file: a line in two writes could have another's in its middle."""
    calls: list[bytes] = []
    monkeypatch.setattr("os.write", lambda _, data: calls.append(data))
    Log().warning("x" * 300, "[2001:db8::1]:65535")
    assert len(calls) == 1
