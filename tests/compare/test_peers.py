"""Other Shadowsocks servers beside the models: found, started as their manuals say, and loaded."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from compare import peers, servers
from compare.bench import Bench
from compare.interrupt import Interrupt
from compare.peers import PEERS, Listen
from compare.plan import Planned
from compare.sample import take
from compare.schema import Settings
from compare.servers import PEER, ROWS
from tunnel.keys import METHODS

PASSWORD = "not for the process list"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    peers.v2ray_major.cache_clear()
    yield
    peers.v2ray_major.cache_clear()


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_every_peer_is_a_row() -> None:
    assert {name for name, row in ROWS.items() if row.kind == PEER} == set(PEERS)


def test_they_are_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.found() == []
    program(tmp_path, "ssserver", "echo shadowsocks 1.21.2")
    program(tmp_path, "go-shadowsocks2", "exit 2")
    assert peers.found() == ["rust", "go"]
    assert peers.version("rust") == "1.21.2"
    assert peers.version("go") == "unknown"


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_password_stands_in_a_file_where_there_is_a_way(name: str, method: str, tmp_path: Path) -> None:
    words = PEERS[name].command(Listen(8388, method, PASSWORD, str(tmp_path)))
    assert words[0] == PEERS[name].program
    assert any(PASSWORD in word for word in words) is PEERS[name].shows_password
    if PEERS[name].shows_password:
        assert any("127.0.0.1:8388" in word for word in words)
        return
    path = next(Path(word) for word in words if word.startswith(str(tmp_path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert json.loads(text)
    for wanted in (PASSWORD, "127.0.0.1", "8388", method):
        assert wanted in text


@pytest.mark.parametrize(
    ("said", "words"), [("V2Ray 4.34.0 (user)", ["-config"]), ("V2Ray 5.1.0 (ok)", ["run", "-c"])]
)
def test_two_versions_of_v2ray(
    said: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "v2ray", f"echo '{said}'")
    command = PEERS["v2ray"].command(Listen(1, "aes-256-gcm", PASSWORD, str(tmp_path)))
    assert command[1:-1] == words


@pytest.mark.parametrize("name", PEERS)
def test_those_that_are_here_are_loaded_like_a_model(name: str, interrupt: Interrupt) -> None:
    if shutil.which(PEERS[name].program) is None:
        pytest.skip(f"{PEERS[name].program} is not on PATH")
    settings = Settings([], 1, 0.1, 1, "aes-256-gcm")
    with Bench(interrupt) as bench:
        for scenario in ("connections", "ping-pong"):
            sample = take(Planned(name, scenario, 1), settings, bench, interrupt)
            assert sample.invalid is None, scenario
            assert sample.figures["cpu"] > 0
    assert peers.version(name)


def test_a_peer_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Interrupt
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "ssserver", "echo 'no such cipher' >&2; exit 1")
    with pytest.raises(servers.ServerFailed, match="rust did not start: no such cipher"):
        servers.start(ROWS["rust"], "aes-256-gcm", [0], interrupt)
