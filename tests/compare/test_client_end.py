"""`compare run --end local`: clients, ours and others', measured between SOCKS5 and one cheap server."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compare import report, schema
from compare.analysis import Analysis
from compare.bench import Bench
from compare.client import Connection, Endpoint, Failed
from compare.diff import warnings
from compare.interrupt import Interrupt
from compare.peers import PEERS
from compare.plan import LOCAL_ONES, Planned
from compare.report import bulk
from compare.report.draw import draw
from compare.report.parts import Section
from compare.sample import speech, take
from compare.schema import Sample, Settings
from compare.servers import AEAD, DIRECT, PEER, RELAY, ROWS
from tests.compare.conftest import Command
from tests.compare.made_up import full_result
from tunnel.config import LOCAL

METHOD = "aes-256-gcm"
SETTINGS = Settings([], 1, 0.05, 1, METHOD, end=LOCAL)
CLIENTS = [name for name, peer in PEERS.items() if peer.client]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    interrupt = Interrupt()
    with Bench(interrupt, sealed=METHOD) as made:
        yield made
    interrupt.close()


@pytest.mark.parametrize("row", ["iterative", "fork", "epoll", DIRECT, RELAY, *CLIENTS])
def test_every_load_goes_through_a_client(row: str, bench: Bench, interrupt: Interrupt) -> None:
    if ROWS[row].kind == PEER and shutil.which(PEERS[row].program_of(LOCAL) or "") is None:
        pytest.skip(f"{PEERS[row].program_of(LOCAL)} is not on PATH")
    for scenario in LOCAL_ONES:
        sample = take(Planned(row, scenario, 1), SETTINGS, bench, interrupt)
        assert sample.invalid is None
        assert [note for note in sample.notes if note.startswith("the server logged")] == []
        assert sample.figures["count"] >= 1
        assert row == DIRECT or sample.figures["cpu"] > 0
        assert row == DIRECT or sample.figures["target_cpu"] > 0  # the server behind, which is not counted


def test_what_is_up_is_opened_by_a_server_and_sealed_by_a_client(bench: Bench, interrupt: Interrupt) -> None:
    for scenario, part in (("bulk-up", "sealing_ns"), ("bulk-down", "opening_ns")):
        figures = take(Planned(AEAD, scenario, 1), SETTINGS, bench, interrupt).figures
        assert figures["cpu"] == figures[part] / 1e9
        serve = dataclasses.replace(SETTINGS, end="serve")
        figures = take(Planned(AEAD, scenario, 1), serve, bench, interrupt).figures
        assert figures["cpu"] == figures["opening_ns" if part == "sealing_ns" else "sealing_ns"] / 1e9


def test_clients_are_asked_by_socks_and_what_leads_past_them_is_sealed() -> None:
    assert speech(ROWS["prefork"], SETTINGS) == {"method": None, "password": None, "socks": True}
    assert speech(ROWS["libev"], SETTINGS)["socks"]
    for row in (DIRECT, RELAY):
        assert speech(ROWS[row], SETTINGS, service=True)["method"] == METHOD


def test_a_client_that_is_no_proxy_is_a_failure() -> None:
    """One that wants a password is none that can be measured."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(3)
                accepted.sendall(b"\x05\xff")
                accepted.recv(1)

        refusing = threading.Thread(target=refuse)
        refusing.start()
        order = {"port": listener.getsockname()[1], "target": 9, "method": None, "password": None}
        with pytest.raises(Failed, match="SOCKS5 was answered with 05ff"):
            Connection(Endpoint({**order, "socks": True}))
        refusing.join()


def test_a_run_of_clients(command: Command, tmp_path: Path) -> None:
    """Its report says what it is, and a run of servers is not compared with it in silence."""
    what = [
        "--end",
        "local",
        "--models",
        "iterative,prefork",
        "--no-null",
        "--rounds",
        "1",
        "--duration",
        "0.05",
    ]
    done = command.run("run", *what, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = schema.load((tmp_path / "result.json").read_text())
    assert result.settings.end == LOCAL
    assert result.settings.scenarios == list(LOCAL_ONES)
    assert [sample.invalid for sample in result.samples] == [None] * result.planned
    sources = {row.name: row.source for row in result.rows}
    assert sources.get("libev", "ss-local") == "ss-local"
    for text in (done.stdout, (tmp_path / "report.md").read_text()):
        assert "This is the client end: each row is `tunnel local`" in text
    other = dataclasses.replace(result, settings=dataclasses.replace(result.settings, end="serve"))
    assert "not alike: end: serve and local" in warnings(other, result, [])


def test_an_aead_line_of_an_older_file_is_read_as_it_was() -> None:
    older = Sample(AEAD, "bulk-up", 1, figures={"bytes": 1e9, "opening_ns": 2e8, "sealing_ns": 3e8})
    result = dataclasses.replace(full_result([AEAD], rounds=1), samples=[older])
    found = Analysis(result).estimate("up_cpu", AEAD)
    assert found
    assert found.value == pytest.approx(0.2)


def test_a_report_of_clients_says_what_they_do() -> None:
    result = full_result(["prefork", "libev"], rounds=2)
    result.rows[1].source = "ss-local"
    clients = dataclasses.replace(result, settings=dataclasses.replace(result.settings, end=LOCAL))
    analysis = Analysis(clients)
    assert "Below 1: less CPU than ss-local for the same work" in report.markdown(analysis)
    made = bulk.gigabyte(analysis)
    assert isinstance(made, Section)
    assert made.drawing
    drawn = draw(made.drawing, 1020, False, "x")
    assert ">up: seals records<" in drawn
    assert ">down: opens records<" in drawn


def test_outliers_are_a_line_for_each_scenario() -> None:
    result = full_result(["prefork", "select", "poll"])
    for sample in result.samples:
        if sample.round == 3 and sample.scenario == "ping-pong" and sample.row != "poll":
            sample.figures["cpu"] *= 9
    said = [text for text in report.problems(Analysis(result)) if text.startswith("Outlier")]
    assert said == ["Outliers, kept: ping-pong, 2 of 10 samples: prefork, select."]
