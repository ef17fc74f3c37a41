"""Rows 1 to 12: what does not authenticate, what has been seen before, and what never comes to an end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing

from tests.conformance import test_replay as replays
from tests.conformance.test_handshake import begin
from tests.conformance.test_master import reload
from tests.faults.case import Case
from tests.faults.probes import FIN, IDLE, Outcome, Probe, ask
from tests.faults.rows import BLOCKING_POOLS, LOOPS, ONE_CLIENT, PEERS, POOLS_OF_THREADS, row
from tests.harness.rig import Rig
from tests.harness.stream import Sealed, Stream, pattern
from tests.harness.tree import child_pids, wait_until
from tests.harness.wire import Seal, address_header

DEADLINE = 1.2  # seconds from accept, in servers of a row's own
SLACK = 1.0  # seconds that a busy machine may add
PREFIXES = range(301)
LIMITED_POOLS = (*BLOCKING_POOLS, *POOLS_OF_THREADS)


def good_stream(rig: Rig, size: int = 0) -> bytes:
    """A whole request: salt, length, and a record with the address and `size` bytes of payload."""
    return Seal(rig.credentials).seal(address_header(*rig.far_place) + pattern(size))


def at_deadline(outcomes: list[Outcome]) -> None:
    """Nothing came back, and each ended by FIN at the deadline."""
    for outcome in outcomes:
        right = outcome.ending == "FIN" and not outcome.received
        assert right, str(outcome)
        assert 0.9 * DEADLINE < outcome.seconds < DEADLINE + SLACK, str(outcome)


def at_once(case: Case) -> int:
    """How many clients: a fork takes its time, and all of this is about time."""
    return 40 if case.subject == "fork" else 100


def impatient(case: Case) -> tuple[Rig, int]:
    """A server with a short deadline, and how many clients it can have at once."""
    rig = case.make("--handshake-timeout", str(DEADLINE), workers=101)
    return rig, 301 if case.subject in LOOPS else at_once(case)


def prefixes(rig: Rig, then: str) -> list[Probe]:
    return [Probe(f"{size} bytes of a good stream", good_stream(rig, 300)[:size], then) for size in PREFIXES]


@row(1, quick=("select",), peers=PEERS, cannot=ONE_CLIENT)
def test_truncated_handshake_then_silence(case: Case) -> None:
    """Every prefix of 0 to 300 bytes of a good stream, hundreds at once; the deadline is 1.2 s by option."""
    rig, clients = impatient(case)
    at_deadline(ask(rig.place, prefixes(rig, IDLE), DEADLINE + SLACK, at_once=clients))
    case.reason("no whole request", len(PREFIXES))


@row(2, quick=("prethread",), peers=PEERS)
def test_truncated_handshake_then_fin(case: Case) -> None:
    """The same prefixes, each followed by `shutdown(SHUT_WR)`."""
    rig = case.rig()
    for outcome in ask(rig.place, prefixes(rig, FIN), 8.0, at_once=at_once(case) // 2):
        right = outcome.ending == "FIN" and not outcome.received and outcome.seconds < 2.0
        assert right, str(outcome)
    case.reason("handshake failed: .*inside", len(PREFIXES) - 2)  # nothing, or a salt alone, is no failure


@row(3, quick=("asyncio",), peers=PEERS)
def test_wrong_tag(case: Case) -> None:
    """One bit of each byte of a good stream in turn, all open at once; 1.2 s by option."""
    rig = case.make("--handshake-timeout", str(DEADLINE))
    whole = good_stream(rig, 30)
    probes = []
    for place in range(len(whole)):
        flipped = bytearray(good_stream(rig, 30))
        flipped[place] ^= 1 << place % 8
        probes.append(Probe(f"byte {place} changed", bytes(flipped)))
    at_deadline(ask(rig.place, probes, DEADLINE + SLACK, at_once=at_once(case)))
    case.reason("handshake failed: wrong tag", len(whole))


def drained(streams: list[Stream]) -> None:
    """Nothing comes, nothing ends, whatever else is sent; and a FIN is answered by a FIN."""
    for stream in streams:
        ending = stream.how_it_ends(0.05)
        assert ending == "open", f"{ending} at once"
        stream.sock.sendall(pattern(2000))
        stream.finish()
    for stream in streams:
        ending = stream.how_it_ends(2.0)
        assert ending == "FIN", f"ends with {ending} after a FIN"


@row(4, quick=("thread",), peers=PEERS)
def test_length_above_0x3fff(case: Case) -> None:
    """Our own encoder: a first record that says 0x4000, 0x7FFF and 0xFFFF."""
    rig = case.rig()
    streams = []
    for length in (0x4000, 0x7FFF, 0xFFFF):
        seal = Seal(rig.credentials)
        streams.append(begin(rig, seal.salt + seal.record(address_header(*rig.far_place), length)))
    drained(streams)
    case.reason("handshake failed: .*bytes", len(streams))


@row(5, quick=("prefork", "trampoline"), peers=PEERS)
def test_zero_length_chunk(case: Case) -> None:
    """Our own encoder: an empty record as the first one, and another after an exchange."""
    rig = case.rig()
    seal = Seal(rig.credentials)
    stream = begin(rig, seal.salt + seal.record(b""))
    drained([stream])
    near, far = rig.open()
    assert isinstance(near, Sealed)
    near.send(b"before")
    assert far.receive_exactly(6) == b"before"
    near.sock.sendall(near.outgoing.record(b"") + near.outgoing.seal(b"after"))
    ended = far.ends_after_data()
    assert ended == (b"", "RST"), f"an empty record within a stream: the target gets {ended}"
    case.reason("handshake failed: .*0 bytes")
    case.reason("cut: .*0 bytes")


@row(6, quick=("fork",), peers=PEERS)
def test_replayed_salt(case: Case) -> None:
    """A request that was served: every worker of a pool gets all of it but the last byte (other models: eight
    times), then that byte; the log names all workers. After HUP once more. `tunnel status` counts them."""
    rig = case.rig()
    request = replays.recorded(rig)
    if case.is_peer:
        drained([begin(rig, request) for _ in range(8)])
        assert replays.nobody_comes(rig), "it is served again"
        return
    counted, workers = replays.count_of_replays(rig), child_pids(rig.pid)
    streams = replays.refused_everywhere(rig, request)
    drained(streams)
    reload(rig)
    wait_until(lambda: are_new(child_pids(rig.pid), workers), 5.0, "a new generation of workers")
    again = replays.refused_everywhere(rig, request)
    drained(again)
    assert replays.nobody_comes(rig), "it is served again"
    refused = len(streams) + len(again)
    assert shown_by_status(rig) - counted == refused, "tunnel status counts them"
    case.reason("salt has been seen before", refused)


def shown_by_status(rig: Rig) -> int:
    words = [sys.executable, "-m", "tunnel", "status", "--json", "--pid", str(rig.pid)]
    shown = subprocess.run(words, capture_output=True, check=True, timeout=10)
    count = json.loads(shown.stdout)["replays"]
    assert isinstance(count, int)
    return count


def are_new(pids: list[int], before: list[int]) -> bool:
    return len(pids) == len(before) and not set(pids) & set(before)


@row(6)
def test_replayed_salt_after_a_restart(case: Case) -> None:
    """With --replay-file, the same once more after a restart of the server."""
    path = str(case.directory / "salts")
    rig = case.make("--replay-file", path, warm=False)
    request = replays.recorded(rig)
    rig.tunnel.terminate()
    assert rig.tunnel.wait(3.0) == 0
    again = case.make("--replay-file", path)
    again.listener.settimeout(0.1)
    with closing(begin(again, request)):
        again.tunnel.wait_for_lines(replays.SEEN)
    again.listener.settimeout(10)
    case.reason("salt has been seen before")


@row(7, quick=("prefork-epoll",), peers=PEERS, cannot=ONE_CLIENT)
def test_two_race_one_salt(case: Case) -> None:
    """The same request on two connections, its halves interleaved, cut in five places."""
    rig = case.rig()
    cuts = (1, 16, 20, 40, -1)
    for cut in cuts:
        request = good_stream(rig, 10)
        pair = [begin(rig, request[:cut]) for _ in range(2)]
        for stream in pair:
            stream.sock.sendall(request[cut:])
        with closing(rig.far()) as far:
            assert far.receive_exactly(10) == pattern(10)
            rig.listener.settimeout(0.1)
            try:
                rig.far().close()
                raise AssertionError(f"cut after {cut} bytes, both are served")
            except TimeoutError:
                pass
            finally:
                rig.listener.settimeout(10)
        for stream in pair:
            stream.close()
    case.reason("salt has been seen before", len(cuts))


@row(8, quick=("poll",), peers=PEERS)
def test_own_salt_sent_back(case: Case) -> None:
    """What the server has answered, which by the same key is a whole request, is sent to it."""
    rig = case.rig()
    stream = begin(rig, good_stream(rig, 4))
    reflected = address_header(*rig.far_place) + b"reflected"
    with closing(rig.far()) as far:
        far.receive_exactly(4)
        far.sock.sendall(reflected)
        said = b""
        while len(said) < rig.credentials.salt_size + 34 + len(reflected):
            said += stream.sock.recv(1000)
    stream.close()
    drained([begin(rig, said)])
    assert replays.nobody_comes(rig), "it is served as a request"
    case.reason("salt has been seen before")


@row(9, quick=("sigio",), peers=PEERS)
def test_first_50_bytes_pre_played(case: Case) -> None:
    """50 bytes of a request and a close; then its owner sends all of it."""
    rig = case.rig()
    request = good_stream(rig, 10)
    stream = begin(rig, request[:50])
    stream.finish()
    stream.how_it_ends(2.0)
    stream.close()
    with closing(begin(rig, request)) as owner, closing(rig.far()) as far:
        assert far.receive_exactly(10) == pattern(10)
        far.close()
        owner.how_it_ends(1.0)
    case.reason("handshake failed: .*inside")


@row(11, quick=("uvloop",), peers=PEERS)
def test_address_that_cannot_be_meant(case: Case) -> None:
    """Our own encoder: address type 7, an empty host, a NUL in the host, port 0."""
    rig = case.rig()
    headers = (
        b"\x07\x7f\x00\x00\x01\x00\x50",
        b"\x03\x00\x00\x50",
        b"\x03\x03a\x00b\x00\x50",
        b"\x01\x7f\x00\x00\x01\x00\x00",
    )
    drained([begin(rig, Seal(rig.credentials).seal(header)) for header in headers])
    case.reason("handshake failed: ", len(headers))


@row(12, quick=("epoll",), peers=PEERS, cannot=ONE_CLIENT)
def test_slowloris(case: Case) -> None:
    """Nine clients, one more than a pool here has workers, send a byte every 0.3 s; the deadline is 3 s."""
    rig = case.make("--handshake-timeout", "3")
    request = good_stream(rig, 100)
    started = time.monotonic()
    slow = [rig.silent() for _ in range(9)]
    held = case.subject in LIMITED_POOLS
    if not held:
        for _ in range(3):
            rig.transfer(within=1.0)
    ended: dict[Stream, float] = {}
    for byte in request[:16]:
        for stream in slow:
            if stream not in ended:
                stream.sock.sendall(bytes([byte]))
        for stream in slow:
            if stream not in ended and (how := stream.how_it_ends(0.0)) != "open":
                assert how == "FIN", f"a slow client gets {how}"
                ended[stream] = time.monotonic() - started
        if len(ended) >= 8:
            break
        time.sleep(0.3)  # the slowness is the subject
    times = sorted(ended.values())
    assert len(times) >= 8, f"{len(times)} of 9 slow clients are ended within {0.3 * 16:.0f} s"
    assert times[0] > 2.7, f"the first ended after {times[0]:.1f} s"
    assert times[7] < 4.2, f"the eighth ended after {times[7]:.1f} s"
    if held:
        case.note("a pool of N is held by N slow clients, to the deadline and no longer")
    case.reason("no whole request", 8, 9)
    case.reason("handshake failed: ", 0, 1)  # who had waited in the queue
