"""Can a prober tell failed handshakes apart? Classes of them, by what he does next.

    class: what is wrong with the first bytes     follow-up: idle, FIN, late data     at once, or byte by byte
                                     \\             |            /
                                   what comes back, FIN or RST, when

Within a follow-up the outcome must be that of random bytes. All classes run in one random order, interleaved
with random bytes, so what a busy machine adds is added to all, however much that is. So no time is judged by
itself, only by its rank: were a class the same as random bytes, it would be a matter of chance which of its
tries come after nearly all of theirs, and that chance can be counted.

    random bytes   . .  . ... .. . .  .  .|. .      the latest twentieth is behind the mark
    a class           .  . . . ..     .   |  .      one of ten behind it: nothing
    another one                 .    .    | .. .. . .. .      eight of ten: a leak

A test that finds nothing must be able to find something: two servers here have a leak, put there by us.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from math import comb
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from tests.conformance.test_handshake import begin
from tests.faults.case import Case, start
from tests.faults.probes import FIN, FOLLOW_UPS, IDLE, Outcome, Probe, ask
from tests.faults.rows import ONE_CLIENT, PEERS, row
from tests.harness.rig import Rig
from tests.harness.wire import Credentials, Seal, address_header
from tunnel.keys import DEFAULT_METHOD

DEADLINE = 1.5  # seconds, by option; the default is 59
LATE = 0.8  # seconds after the connection
PATIENCE, PEERS_PATIENCE = 20.0, 3.5  # seconds; a busy server closes late, and all alike; a peer may never
EARLY = 0.3  # seconds; connect may return that much after accept, in a busy client
APART = 0.02  # seconds that a network between them hides; a few jiffies (docs/faults.md)
BEHIND = 0.05  # of the tries of the control
CHANCE = 1e-6  # what is less probable is no chance; some 300 times it is asked for each server
CONTROL = "random bytes"
LISTED = (8, 12, 16, 22, 33, 41, 49)  # lengths of published probes, each also one more and one less
PUBLISHED_FLIPS = {
    "byte 0 changed": (0,),
    "bytes 0 to 7, 62 and 63 changed": (*range(8), 62, 63),
    "byte 16 changed": (16,),
    "bytes 6 and 16 changed": (6, 16),
}
Make = Callable[[int], bytes]  # the bytes of a try


class Tries(NamedTuple):
    """How many, for each follow-up and rhythm."""

    each: int  # class
    control: int
    at_once: int


ALL, QUICK = Tries(30, 120, at_once=100), Tries(6, 60, at_once=200)


def changed(content: bytes, places: Sequence[int]) -> bytes:
    after = bytearray(content)
    for place in places:
        after[place % len(after)] ^= random.randrange(1, 256)
    return bytes(after)


def place(number: int, tries: int, start: int, end: int) -> int:
    """Of the byte that try `number` changes: from the first to the last one, and all, if there are enough."""
    return start + number % tries * (end - start - 1) // max(1, tries - 1)


def served(rig: Rig) -> tuple[bytes, bytes]:
    """A request that was served, and what the server has answered: by the same key, a request as well."""
    header = address_header(*rig.far_place)
    request = Seal(rig.credentials).seal(header + b"a first payload")
    with closing(begin(rig, request)) as stream, closing(rig.far()) as far:
        far.receive_exactly(15)
        far.sock.sendall(header + b"an answer")
        answer = b""
        while len(answer) < rig.credentials.salt_size + 34 + len(header) + 9:
            answer += stream.sock.recv(1000)
    return request, answer


def classes(rig: Rig, tries: int) -> dict[str, Make]:
    request, answer = served(rig)
    header = address_header(*rig.far_place)
    salt = rig.credentials.salt_size
    length = salt + 18  # where the sealed length ends

    def fresh(payload: bytes = b"a first payload") -> bytes:
        return Seal(rig.credentials).seal(header + payload)

    def record(payload: bytes, length: int | None = None) -> bytes:
        seal = Seal(rig.credentials)
        return seal.salt + seal.record(payload, length)

    short = b"a first"
    whole = len(fresh(short))
    made: dict[str, Make] = {
        CONTROL: lambda _: os.urandom(random.randrange(50, 301)),
        "less than a salt": lambda number: os.urandom(number % salt),
        "less than a length": lambda number: os.urandom(salt + number % 18),
        f"{length} to 300 bytes": lambda number: os.urandom(place(number, tries, length, 301)),
        "221 bytes": lambda _: os.urandom(221),
        "a good beginning": lambda number: fresh(short)[: place(number, tries, 0, whole)],
        "a changed salt": lambda number: changed(fresh(), [place(number, tries, 0, salt)]),
        "a changed length": lambda number: changed(fresh(), [place(number, tries, salt, length)]),
        "a changed payload": lambda number: changed(fresh(short), [place(number, tries, length, whole)]),
        "the same bytes": lambda _: request,
        "its own answer": lambda _: answer,
        "an address that cannot be": lambda _: record(b"\x07" + header[1:]),
        "port 0": lambda _: record(header[:-2] + b"\0\0"),
        "an empty host": lambda _: record(b"\x03\0\0\x50"),
        "length 0": lambda _: record(b""),
        "length 0x4000": lambda _: record(header, 0x4000),
    }
    for size in LISTED:
        made[f"{size} bytes, 1 more, 1 less"] = lambda number, size=size: os.urandom(size - 1 + number % 3)  # type: ignore[misc]
    for name, places in PUBLISHED_FLIPS.items():
        made[name] = lambda _, places=places: changed(request, places)  # type: ignore[misc]
    return made


def probe(rig: Rig, tries: Tries, patience: float = PATIENCE) -> list[Outcome]:
    probes = [
        Probe(kind, make(number), then, bytewise)
        for kind, make in classes(rig, tries.each).items()
        for then in FOLLOW_UPS
        for bytewise in (False, True)
        for number in range(tries.control if kind == CONTROL else tries.each)
    ]
    waiting = [one for one in probes if one.then != FIN]
    ending = [
        one for one in probes if one.then == FIN
    ]  # by themselves, so that all have been accepted by then
    return [
        outcome
        for some in (waiting, ending)
        for outcome in ask(rig.place, some, patience, at_once=tries.at_once, late_after=LATE)
    ]


def leaks(outcomes: list[Outcome]) -> list[str]:
    """What tells a class from random bytes, one line each."""
    groups: dict[tuple[str, bool, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.probe.then, outcome.probe.bytewise, outcome.probe.kind].append(outcome)
    found = []
    for (then, bytewise, kind), group in groups.items():
        control = groups[then, bytewise, CONTROL]
        name = f"{kind}, {then}" + (", byte by byte" if bytewise else "")
        received, endings = {one.received for one in group}, {one.ending for one in group}
        if received != {0}:
            found.append(f"{name}: {max(received)} bytes come back")
        elif endings != {one.ending for one in control}:
            found.append(f"{name}: {' or '.join(sorted(endings))}")
        elif kind != CONTROL and told_by_the_clock(times(group), times(control)):
            after, instead = median(times(group)), median(times(control))
            found.append(f"{name}: after {after:.2f} s instead of {instead:.2f} s")
    return found


def times(group: list[Outcome]) -> list[float]:
    return [one.seconds for one in group]


def told_by_the_clock(group: list[float], control: list[float]) -> bool:
    """Too many are later than nearly all of the control, or earlier, and by more than APART."""
    later = chance_of_so_many_late(group, control)
    earlier = chance_of_so_many_late([-one for one in group], [-one for one in control])
    return min(later, earlier) < CHANCE


def chance_of_so_many_late(group: list[float], control: list[float]) -> float:
    """The chance that so many or more of the group are behind a mark which the latest of the control are
    behind, if both were drawn from one urn. (The precedence test: all orders are equally probable.)"""
    behind = int(len(control) * BEHIND)
    before = len(control) - 1 - behind  # one of the control is the mark
    mark = sorted(control)[before] + APART
    late = sum(one > mark for one in group)
    orders = sum(
        comb(number + behind, behind) * comb(len(group) - number + before, before)
        for number in range(late, len(group) + 1)
    )
    return orders / comb(len(group) + len(control), len(group))


@row(50, peers=PEERS, cannot=ONE_CLIENT)
def test_failed_handshakes_cannot_be_told_apart(case: Case) -> None:
    """27 classes, three follow-ups, at once and byte by byte, 30 tries each, among 120 of random bytes."""
    rig = case.make("--handshake-timeout", str(DEADLINE), workers=ALL.at_once + 1)
    outcomes = probe(rig, ALL, PEERS_PATIENCE if case.is_peer else PATIENCE)
    found = leaks(outcomes)
    assert not found, f"{len(found)} differ: " + "; ".join(found[:3])
    if not case.is_peer:
        control = [one for one in outcomes if one.probe.kind == CONTROL and one.probe.then != FIN]
        assert {one.ending for one in control} == {"FIN"}
        assert min(times(control)) > DEADLINE - EARLY, f"closed after {min(times(control)):.2f} s"
    case.reason("handshake failed|no whole request", 1000, 10_000)
    case.allow_growth(rig.workers * 1_000_000)  # each has written to its pages, and has a thread that drains


def test_thirty_tries_change_every_byte() -> None:
    salt, length, end = 16, 34, 34 + 7 + len(b"a first") + 16  # as `classes` has them, to 127.0.0.1
    for start_, end_ in ((0, salt), (salt, length), (length, end)):
        assert {place(number, ALL.each, start_, end_) for number in range(ALL.each)} == set(
            range(start_, end_)
        )
    assert {place(number, QUICK.each, length, end) for number in range(QUICK.each)} >= {length, end - 1}


@pytest.mark.parametrize(("model", "method"), [("epoll", DEFAULT_METHOD), ("prethread", "aes-128-gcm")])
def test_the_same_with_a_few_tries(model: str, method: str, tmp_path: Path) -> None:
    """Salts have 32 bytes by default, and 16 in the whole row."""
    rig = start(
        tmp_path,
        model,
        "--handshake-timeout",
        str(DEADLINE),
        workers=QUICK.at_once + 1,
        credentials=Credentials(method, "correct horse"),
    )
    try:
        assert leaks(probe(rig, QUICK)) == []
    finally:
        rig.close()


CLOSES_AT_ONCE = "drain.Drain.add = lambda *_: None"
STARTS_ANEW = (
    "add = drain.Drain.add; drain.Drain.add = lambda self, sock, at, *more: add(self, sock, at + 0.7, *more)"
)


@pytest.mark.parametrize("leak", [CLOSES_AT_ONCE, STARTS_ANEW], ids=["closes-at-once", "closes-later"])
def test_a_leak_that_we_made_is_found(leak: str, tmp_path: Path) -> None:
    """A site module changes the server: a wrong tag is closed at once, or 0.7 s too late."""
    (tmp_path / "sitecustomize.py").write_text(f"from tunnel import drain\n{leak}\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())])
    environment = os.environ | {"PYTHONPATH": path}
    rig = start(tmp_path, "epoll", "--handshake-timeout", str(DEADLINE), environment=environment)
    try:
        found = leaks(probe(rig, QUICK))
    finally:
        rig.close()
    assert any(line.startswith(f"less than a salt, {IDLE}:") for line in found), found
