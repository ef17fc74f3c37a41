"""What was sent before is not served again, whoever of the server's processes and threads it comes to; nor
is it believed at the client end."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.conformance.conftest import WORKERS, MakeRig
from tests.conformance.test_handshake import begin, good_opening
from tests.harness.rig import FORWARD, LOCAL, NAMED, SERVE, Rig
from tests.harness.stream import Sealed, Stream
from tests.harness.tree import child_pids, is_alive, wait_until
from tests.harness.wire import Seal, address_header
from tests.harness.workers import one_in_each
from tunnel.status import counts_of

pytestmark = pytest.mark.ends(SERVE)
SEEN = "handshake failed: salt has been seen before"
ONCE = b"only once"


def recorded(rig: Rig) -> bytes:
    """A whole request that has been served."""
    request = Seal(rig.credentials).seal(address_header(*rig.far_place) + ONCE)
    with closing(begin(rig, request)), closing(rig.far()) as far:
        assert far.receive_exactly(len(ONCE)) == ONCE
    return request


def nobody_comes(rig: Rig) -> bool:
    return not select.select([rig.listener], [], [], 0)[0]


def replayed(rig: Rig, request: bytes, times: int = 1) -> None:
    """It is sent again, and drained without a byte in return."""
    before = len(rig.tunnel.lines)
    are_drained(rig, [begin(rig, request) for _ in range(times)], before)


def are_drained(rig: Rig, streams: list[Stream], before: int) -> None:
    rig.tunnel.wait_for_lines(SEEN, len(streams), start=before)
    assert nobody_comes(rig)
    for stream in streams:
        assert stream.how_it_ends(0.0) == "open", "a replay looks like any other failed handshake"
        stream.close()


def everywhere(rig: Rig, request: bytes) -> list[Stream]:
    """Sent again, but for its last byte, to every worker of a pool; to other models as often as a pool has
    workers, so to as many of their processes or threads."""
    if rig.workers:
        return one_in_each(rig, lambda: begin(rig, request[:-1]))
    return [begin(rig, request[:-1]) for _ in range(WORKERS)]


def refused_everywhere(rig: Rig, request: bytes) -> list[Stream]:
    """Whoever has it refuses it, and by the log that is every worker. They are drained."""
    before = len(rig.tunnel.lines)
    streams = everywhere(rig, request)
    for stream in streams:
        stream.sock.sendall(request[-1:])
    lines = rig.tunnel.wait_for_lines(SEEN, len(streams), start=before)
    refused = {int(pid) for line in lines for pid in re.findall(r"\[(\d+)\]", line)[:1]}
    assert refused >= set(child_pids(rig.pid) if rig.workers else ()), "not every worker was asked"
    assert len(refused) == (len(streams) if rig.model == "fork" else rig.workers or 1)
    return streams


def count_of_replays(rig: Rig) -> int:
    """As `tunnel status` reads it."""
    return counts_of(str(rig.pid))[0]


def test_recorded_request_is_refused_by_every_worker(rig: Rig) -> None:
    request, before, counted = recorded(rig), len(rig.tunnel.lines), count_of_replays(rig)
    streams = refused_everywhere(rig, request)
    are_drained(rig, streams, before)
    assert count_of_replays(rig) == counted + len(streams)


@pytest.mark.two_clients
def test_request_is_refused_while_it_is_served(rig: Rig) -> None:
    request = good_opening(rig, ONCE)
    with closing(begin(rig, request)), closing(rig.far()):
        replayed(rig, request)


def test_what_the_server_has_sent_is_no_request(rig: Rig) -> None:
    """Without its own salts in the memory this would be served: the same key seals both ways."""
    stream = begin(rig, good_opening(rig, ONCE))
    with closing(rig.far()) as far:
        far.receive_exactly(len(ONCE))
        far.sock.sendall(address_header(*rig.far_place) + b"reflected")
        wanted = 16 + 2 + 16 + len(address_header(*rig.far_place)) + len(b"reflected") + 16
        said = b""
        while len(said) < wanted:
            said += stream.sock.recv(wanted - len(said))
    stream.close()
    replayed(rig, said)


@pytest.mark.two_clients
def test_of_two_that_race_one_salt_exactly_one_wins(rig: Rig) -> None:
    for cut in (1, 16, 20, 40, -1):
        before = len(rig.tunnel.lines)
        request = good_opening(rig, ONCE)
        pair = [begin(rig, request[:cut]) for _ in range(2)]
        for stream in pair:
            stream.sock.sendall(request[cut:])
        rig.tunnel.wait_for_lines(SEEN, start=before)
        with closing(rig.far()) as far:
            assert far.receive_exactly(len(ONCE)) == ONCE
        assert nobody_comes(rig)
        for stream in pair:
            stream.close()


def test_request_that_did_not_authenticate_leaves_the_salt_to_its_owner(rig: Rig) -> None:
    """Or whoever sees a salt on the wire could lock its owner out."""
    request = good_opening(rig, ONCE)
    before = len(rig.tunnel.lines)
    for part, said in (
        (request[:-1] + bytes([request[-1] ^ 1]), "wrong tag"),
        (request[:40], "inside record"),
    ):
        stream = begin(rig, part)
        stream.finish()
        rig.tunnel.wait_for_lines(f"handshake failed: .*{said}", start=before)
        stream.close()
    with closing(begin(rig, request)), closing(rig.far()) as far:
        assert far.receive_exactly(len(ONCE)) == ONCE


def test_reload_forgets_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    request = recorded(rig)
    os.kill(rig.pid, signal.SIGHUP)
    rig.tunnel.wait_for_lines("configuration read again")
    replayed(rig, request, WORKERS)


@pytest.mark.only("prefork", "fork", "thread", "epoll")
def test_new_program_knows_what_the_old_one_has_seen(make_rig: MakeRig) -> None:
    rig = make_rig()
    request = recorded(rig)
    os.kill(rig.pid, signal.SIGUSR2)
    (line,) = rig.tunnel.wait_for_lines(r"new program is \d+")
    pid = int(re.findall(r"new program is (\d+)", line)[0])
    assert rig.tunnel.wait(3.0) == 0
    replayed(rig, request, WORKERS)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 3.0, "the new program ends when it is told to")


@pytest.mark.only("prefork", "thread")
def test_one_new_program_is_enough(make_rig: MakeRig) -> None:
    """Two would serve side by side from then on, each with limits of its own."""
    rig = make_rig()
    for _ in range(3):
        os.kill(rig.pid, signal.SIGUSR2)
        rig.tunnel.wait_for_lines(r"new program (is \d+|has been started already)", 1)
    rig.tunnel.wait_for_lines(r"has been started already")
    assert rig.tunnel.wait(5.0) == 0
    (pid,) = re.findall(r"new program is (\d+)", rig.tunnel.log())
    os.kill(int(pid), signal.SIGTERM)
    wait_until(lambda: not is_alive(int(pid)), 3.0, "the new program ends when it is told to")


@pytest.mark.only("prefork", "select")
def test_file_keeps_it_over_a_restart(make_rig: MakeRig, tmp_path: Path) -> None:
    path = tmp_path / "salts"
    rig = make_rig("--replay-file", str(path))
    request = recorded(rig)
    rig.tunnel.terminate()
    assert rig.tunnel.wait(3.0) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    again = make_rig("--replay-file", str(path))
    replayed(again, request)


@pytest.mark.only("prefork")
def test_file_that_holds_something_else_is_refused_and_left_alone(make_rig: MakeRig, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"precious")
    path.chmod(0o600)
    with pytest.raises(AssertionError, match="holds something else: expected a file of --replay-file"):
        make_rig("--replay-file", str(path))
    assert path.read_bytes() == b"precious"


# --- at the client end: what its server has said, and what it has said itself ---


def said_by_server(rig: Rig, words: bytes) -> bytes:
    """A whole reply, of which somebody on the way has kept a copy."""
    near = rig.near(first=b"hello")
    far = rig.far()
    assert isinstance(far, Sealed)
    reply = far.outgoing.seal(words)
    far.sock.sendall(reply)
    assert near.receive_exactly(len(words)) == words
    near.close()
    far.close()
    return reply


def is_not_believed(rig: Rig, send: Callable[[Stream], None]) -> None:
    """Somebody on the way answers in the server's place: the client sees no byte, and no clean end."""
    before = len(rig.tunnel.lines)
    near = rig.near(first=b"hello")
    far = rig.far_before_header()
    send(far)
    assert near.ends_after_data() == (b"", "RST")
    rig.tunnel.wait_for_lines("cut: salt has been seen before", start=before)
    far.close()


@pytest.mark.ends(LOCAL, FORWARD)
def test_a_reply_that_was_recorded_is_not_believed_again(rig: Rig) -> None:
    reply = said_by_server(rig, b"the answer of yesterday")
    for _ in range(WORKERS + 1):
        is_not_believed(rig, lambda far: far.sock.sendall(reply))


@pytest.mark.ends(LOCAL, FORWARD)
def test_what_a_client_end_has_sent_is_no_reply(rig: Rig) -> None:
    def reflect(far: Stream) -> None:
        request = b""
        while len(request) < 16 + 2 + 16 + len(address_header(*NAMED)) + 5 + 16:
            request += far.sock.recv(4096)
        far.sock.sendall(request)

    is_not_believed(rig, reflect)
