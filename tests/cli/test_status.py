"""`tunnel status` among processes that were made to hurt who looks: root looks at everybody's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

import pytest

from models._scoreboard import HEADER, MAGIC, NAME, STATES, size_for
from tests.cli.running import Running, private, tunnel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
# It has a board of its own: what it is told, but for its pid; or it opens what is no file under that name.
HOSTILE = """
import os, struct, sys, tempfile
content = bytearray.fromhex(sys.argv[1])
if content:
    fd = os.memfd_create("tunnel-scoreboard")
    content[12:16] = struct.pack("=I", os.getpid())
    os.write(fd, content)
else:
    path = tempfile.mkdtemp() + "/tunnel-scoreboard"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
print("ready", flush=True)
sys.stdin.read()
"""


def board(
    model: bytes = b"thread",
    command: bytes = b"serve",
    *,
    slots: int = 4,
    started: float = 0.0,
    state: int = 1,
) -> bytes:
    """As a server would have it, unless told otherwise; the pid comes later."""
    content = bytearray(size_for(4))
    HEADER.pack_into(content, 0, MAGIC, slots, 0, started or time(), 0, 0, 0, 0, model, command)
    content[-(-HEADER.size // 64) * 64] = state
    return bytes(content)


@contextmanager
def process_with(content: bytes) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", HOSTILE, content.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()


def test_what_looks_like_a_server_in_every_part_is_shown() -> None:
    """Or the others here would prove nothing."""
    with process_with(board()) as pid:
        assert json.loads(tunnel("status", "--json", "--pid", str(pid)).out)["model"] == "thread"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(board(model=b"\x1b]0;gotcha\x07"), id="words for the terminal"),
        pytest.param(board(command=b"\xff\xfe"), id="no text"),
        pytest.param(board(slots=1 << 31), id="more slots than there are"),
        pytest.param(board(started=1e300), id="a date that is none"),
        pytest.param(board(started=float("nan")), id="no number"),
        pytest.param(board(state=len(STATES)), id="a state that does not exist"),
        pytest.param(board()[:64], id="cut short"),
        pytest.param(b"", id="a FIFO"),
    ],
)
def test_what_no_server_has_written_is_not_shown_and_hides_nobody(content: bytes, tmp_path: Path) -> None:
    path = private(tmp_path / "password", "x")
    with process_with(content) as pid, Running("serve", "--password-file", path) as server:
        for words in ([], ["--json"]):
            ended = tunnel("status", *words)
            assert (ended.code, ended.err) == (0, "")
            assert str(server.pid) in ended.out
            assert f"pid {pid}," not in ended.out
            assert f'"pid": {pid},' not in ended.out
            assert "\x1b" not in ended.out
    assert NAME in HOSTILE
