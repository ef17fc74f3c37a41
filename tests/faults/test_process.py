"""Rows 40 to 48: signals, the machine's own troubles, and what a user gets wrong."""

from __future__ import annotations

import glob
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli import test_mistakes as mistakes
from tests.cli import test_secrets as secrets
from tests.cli.running import UNPRIVILEGED, private
from tests.conformance import test_stop as stops
from tests.conformance.test_master import Crowd, config_of, configure, reload
from tests.core import test_keys as keys
from tests.faults import peers
from tests.faults.between import Between
from tests.faults.case import Case
from tests.faults.network import Network
from tests.faults.peers import NOT_FOR_PEERS, both_ways
from tests.faults.rows import PEERS, row
from tests.faults.tools import not_installed, require
from tests.harness.rig import Rig
from tests.harness.stream import exchange, pattern
from tests.harness.targets import Target
from tests.harness.tree import child_pids, members, wait_until
from tunnel.keys import METHODS

TERM, INT = signal.SIGTERM, signal.SIGINT
MB = 1_000_000
HANDSHAKE = 2.0  # seconds, where clocks jump
DAY = 86_400  # seconds
WRONG = (
    "a wrong type",
    "an unknown method",
    "an unknown model",
    "a short key",
    "no JSON",
    "an empty password",
)


@row(40, quick=("prethread", "prefork-reuseport"), peers=PEERS)
def test_sigterm_in_a_transfer(case: Case) -> None:
    """8 MB up and 8 MB down by their SHA-256, SIGTERM after the first megabyte."""
    if case.is_peer:
        peers.sigterm_in_a_transfer(case.make())
    else:
        stops.test_sigterm_stops_accepting_and_lets_a_transfer_finish(case.make)
    case.gone()


@row(41, quick=("trampoline",), peers=PEERS)
def test_second_sigterm_and_sigint(case: Case) -> None:
    """Beside an open connection: SIGTERM twice; SIGTERM, then SIGINT; SIGINT alone."""
    for first, last in ((TERM, TERM), (TERM, INT), (None, INT)):
        rig = case.make()
        near, far = rig.open()
        pids = stops.everybody(rig)
        if first:
            rig.tunnel.signal(first)
            rig.tunnel.wait_for_lines("stopping")
        rig.tunnel.signal(last)
        code = rig.tunnel.wait(1.0)
        sent = " and ".join(number.name for number in (first, last) if number)
        assert code == -last, f"{sent}: exit code {code}, not the signal"
        stops.all_gone(pids)
        stops.assert_cut(near, far)
        case.gone()


@row(42, quick=("asyncio",), peers=PEERS, cannot=NOT_FOR_PEERS[42])
def test_sighup(case: Case) -> None:
    """300 clients, four at once, while HUP comes four times with a good file and once with a bad one."""
    rig = case.make("--grace", "1")
    good = config_of(rig).read_text()
    with Target() as target:
        crowd = Crowd(rig, target, 300, at_once=1 if case.subject == "iterative" else 4)
        for number in range(1, 5):
            crowd.wait_for(number * 50)
            reload(rig)
        configure(rig, timeout="soon")
        os.kill(rig.pid, signal.SIGHUP)
        rig.tunnel.wait_for_lines("configuration not read again: .*timeout")
        crowd.finish()
    config_of(rig).write_text(good)
    wait_until(lambda: len(child_pids(rig.pid)) <= rig.workers, 5.0, "the old generations have ended")
    case.reason("configuration not read again")


@row(43, quick=("sigio",), peers=PEERS)
def test_port_in_use_or_privileged(case: Case) -> None:
    """A second server on a taken port, and one on port 80 without capabilities."""
    rig = case.rig()
    if case.is_peer:
        peers.port_in_use(rig)
        return
    words = ["serve", "--model", case.subject, "--listen"]
    mistakes.mistake(os.EX_UNAVAILABLE, str(rig.place), "in use", words=[*words, str(rig.place)])
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 80:
        place = "127.0.0.1:80"
        mistakes.mistake(os.EX_NOPERM, place, "below 1024", words=[*words, place], prefix=UNPRIVILEGED)


def generation_logs(rig: Rig, to_full: bool) -> None:
    """Those who wrote elsewhere, an old generation of workers, have gone."""

    def all_do() -> bool:
        processes = members(rig.pid)
        try:
            opened = [{os.readlink(fd) for fd in glob.glob(f"/proc/{each.pid}/fd/*")} for each in processes]
        except FileNotFoundError:  # one has just ended
            return False
        return len(processes) == 1 + rig.workers and all(
            ("/dev/full" in found) == to_full for found in opened
        )

    wait_until(all_do, 5.0, "all processes log to the same place")


@row(44, quick=("select",), peers=PEERS, cannot=NOT_FOR_PEERS[44])
def test_full_disk_behind_the_log(case: Case) -> None:
    """HUP turns the log to /dev/full; three failures and three transfers; then it turns back."""
    rig = case.make()
    assert rig.baseline  # a log that was elsewhere once has a descriptor of its own from then on
    rig.baseline = rig.baseline._replace(descriptors=rig.baseline.descriptors + rig.baseline.processes)
    usual = config_of(rig).read_text()
    configure(rig, log_file="/dev/full")
    os.kill(rig.pid, signal.SIGHUP)
    generation_logs(rig, to_full=True)
    for _ in range(3):
        rig.transfer()
        probe = rig.silent()
        probe.sock.sendall(pattern(100))
        probe.finish()
        assert probe.how_it_ends(2.0) == "FIN"
    config_of(rig).write_text(usual)
    os.kill(rig.pid, signal.SIGHUP)
    (line,) = rig.tunnel.wait_for_lines(r"configuration read again \(\d+ lines? before this one")
    generation_logs(rig, to_full=False)
    lost = int(line.partition("(")[2].partition(" ")[0])
    assert lost == 4, f"4 lines were lost, it says {lost}"


@contextmanager
def another_clock(path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process whose wall clock is as far off as `path` says."""
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not found:
        not_installed("libfaketime is not here: apt-get install faketime")
    path.write_text("+0\n")
    yield {
        **os.environ,
        "LD_PRELOAD": found[0],
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@row(45, peers=PEERS, cannot=NOT_FOR_PEERS[45])
def test_clock_jumps(case: Case) -> None:
    """libfaketime moves the wall clock by a day, forward and back; deadlines and heartbeats stay."""
    path = case.directory / "clock"
    with another_clock(path) as environment:
        words = ("--handshake-timeout", str(HANDSHAKE), "--heartbeat", "2")
        rig = case.make(*words, environment=environment)
        near, far = rig.open()
        for jump in (DAY, 0):
            if case.subject == "iterative":  # one at a time
                rig.close_streams()
            started = time.monotonic()
            silent = rig.silent()
            time.sleep(0.3)  # it has been accepted, by the old clock
            path.write_text(f"+{jump}\n")
            assert silent.how_it_ends(0.8 * HANDSHAKE - 0.3) == "open", "the jump has ended a handshake"
            assert silent.how_it_ends(HANDSHAKE) == "FIN"
            took = time.monotonic() - started
            assert HANDSHAKE * 0.9 < took < HANDSHAKE + 1.0, (
                f"a deadline of {HANDSHAKE:g} s took {took:.1f} s"
            )
            silent.close()
        if case.subject != "iterative":
            exchange(near, far, 100_000)
        time.sleep(1.5)  # and longer than the heartbeat, since the last jump
        lines = rig.tunnel.wait_for_lines("no whole request", 2)
        days = [line[:10] for line in lines]
        assert days[0] != days[1], "the clock has not jumped"
        case.reason("no whole request", 2)


@row(46, quick=("prethread-queue",), peers=PEERS)
def test_delay_and_small_pieces(case: Case) -> None:
    """A relay in user space: pieces of at most 700 bytes, 1 ms each."""
    rig = case.rig()
    with Between(rig.place, piece=700, delay=0.001) as relay:
        near = rig.near(place=relay.place)
        far = rig.far()
        both_ways(near, far, 200_000)


@row(46, peers=PEERS)
def test_loss_and_a_rate_limit(case: Case) -> None:
    """A network namespace where nft loses 3 % of all segments, and TBF lets 40 Mbit/s through."""
    require("tc", "nft")
    with Network() as network:
        limit = "tc qdisc add dev lo root tbf rate 40mbit burst 70kb latency 100ms"
        network.run(*limit.split())
        rig = case.make()
        network.drop("meta l4proto tcp numgen random mod 100 < 3")
        near, far = rig.open()
        both_ways(near, far, MB)
        near.close()
        far.close()
        network.run("nft", "flush", "ruleset")
        case.look()


@row(47, quick=("uvloop",), peers=PEERS, cannot=NOT_FOR_PEERS[47])
def test_configuration_errors(case: Case) -> None:
    """Six wrong files: a type, a method, a model, a key, no JSON, no password."""
    if case.is_peer:
        peers.configuration_errors(case.subject, case.directory)
        return
    for name in WRONG:
        content, said = mistakes.CONTENTS[name]
        path = private(case.directory / "config.json", content)
        mistakes.mistake(
            os.EX_CONFIG, path, *said, words=["serve", "--model", case.subject, "--config", path]
        )


@row(48, quick=("prefork-fdpass",), peers=PEERS)
def test_secrets(case: Case) -> None:
    """/proc/PID/cmdline, environ, comm of every process; the log at debug; repr; an open key file."""
    if case.is_peer:
        peers.secrets(case.rig())
        return
    secrets.test_a_running_server_hides_its_password_in_every_process(case.subject, case.directory)
    secrets.test_a_password_is_in_no_output_however_much_is_logged(case.subject, "text", case.directory)
    mistakes.test_a_password_file_that_others_can_read(case.directory)
    for method in METHODS:
        keys.test_a_secret_never_shows_its_key(method)
