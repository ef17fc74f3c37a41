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
from tunnel.config import LOCAL
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
    assert peers.found(LOCAL) == ["go"]  # which is both ends; sslocal is not there
    program(tmp_path, "sslocal", "exit 0")
    assert peers.found(LOCAL) == ["rust", "go"]
    assert str(tmp_path / "sslocal") in peers.listing()


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


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.client])
def test_a_client_listens_here_and_leads_there(name: str, tmp_path: Path) -> None:
    client = PEERS[name].client
    assert client
    words = client.command(Listen(1080, "aes-256-gcm", PASSWORD, str(tmp_path), server=8388))
    assert words[0] == client.program
    assert any(PASSWORD in word for word in words) is PEERS[name].shows_password
    if PEERS[name].shows_password:
        assert words[1:] == [
            "-c",
            f"ss://AEAD_AES_256_GCM:{PASSWORD}@127.0.0.1:8388",
            "-socks",
            "127.0.0.1:1080",
        ]
        return
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["local_port"], config["server_port"]) == (1080, 8388)


@pytest.mark.parametrize("name", ["libev", "rust"])
def test_those_that_delay_by_default_are_told_not_to(name: str, tmp_path: Path) -> None:
    """Nagle's algorithm against delayed acknowledgements: 44 ms, which would be measured as theirs."""
    PEERS[name].command(Listen(8388, "aes-256-gcm", PASSWORD, str(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["no_delay"] is True


@pytest.mark.parametrize(
    ("has", "said"),
    [("True True", "does not start"), ("False False", "30 times slower"), ("True False", None)],
)
def test_a_pproxy_that_cannot_do_its_best_is_told(
    has: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "python", f"echo {has}")
    (tmp_path / "pproxy").write_text(f"#!{tmp_path}/python\n")
    (tmp_path / "pproxy").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.notes().get("pproxy", "nothing").count(said or "nothing") == 1
    assert (said or "pproxy") in peers.listing()


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
