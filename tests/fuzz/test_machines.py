"""Hypothesis tells stories about streams, sessions, SOCKS5 and configurations; after each step all must hold.

`HYPOTHESIS_PROFILE=thorough` tells thousands, new ones every time (tests/conftest.py).
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.feeding import EVERY_CLASS, RECORD_EDGES, methods, watched_buffers
from tests.fuzz.machines import Channel, SocksTalk, Talk
from tunnel import config
from tunnel.errors import ConfigError
from tunnel.gather import Gatherer

sizes = st.one_of(st.sampled_from([*RECORD_EDGES, *EVERY_CLASS]), st.integers(1, 100_000))
places = st.integers(0, 1 << 20)
masks = st.integers(1, 255)


class Records(RuleBasedStateMachine):
    """A sealed stream that is cut anywhere, kept waiting, forged, and ended."""

    @initialize(method=methods, head=st.binary(max_size=300))
    def begin(self, method: str, head: bytes) -> None:
        self.watch = ExitStack()
        self.watch.enter_context(watched_buffers())
        self.channel = Channel(method, head)

    @rule(size=sizes)
    def write(self, size: int) -> None:
        self.channel.write(size)

    @rule()
    def write_nothing(self) -> None:
        self.channel.write_nothing()

    @rule()
    def release_sealer(self) -> None:
        self.channel.release_sealer()

    @rule(size=sizes)
    def read(self, size: int) -> None:
        self.channel.read(size)

    @rule()
    def read_nothing(self) -> None:
        self.channel.read_nothing()

    @rule()
    def release_opener(self) -> None:
        self.channel.release_opener()

    @rule(place=places, mask=masks)
    def flip(self, place: int, mask: int) -> None:
        self.channel.flip(place, mask)

    @rule(place=places, size=st.sampled_from(RECORD_EDGES))
    def remove(self, place: int, size: int) -> None:
        self.channel.remove(place, size)

    @rule(place=places, size=st.sampled_from(RECORD_EDGES))
    def repeat(self, place: int, size: int) -> None:
        self.channel.repeat(place, size)

    @rule(place=places, forged=st.binary(min_size=1, max_size=100))
    def insert(self, place: int, forged: bytes) -> None:
        self.channel.insert(place, forged)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "channel"):
            self.channel.is_true()

    def teardown(self) -> None:
        if hasattr(self, "channel"):
            with self.watch:
                self.channel.end()


class Sessions(RuleBasedStateMachine):
    """Two ends over a fake link, which turn in any order and read in any pieces."""

    @initialize(
        method=methods,
        socks=st.booleans(),
        pieces=st.lists(sizes, min_size=1, max_size=8),
        seen=st.sampled_from([False, False, False, True]),
    )
    def begin(self, method: str, socks: bool, pieces: list[int], seen: bool) -> None:
        self.watch = ExitStack()
        self.watch.enter_context(watched_buffers())
        longer = chain(*([size << turn for size in pieces] * 20 for turn in range(3)))  # or it takes a day
        self.talk = Talk(method, socks, chain(longer, repeat(1 << 20)), seen)

    @rule(upward=st.booleans(), size=sizes)
    def say(self, upward: bool, size: int) -> None:
        self.talk.say(upward, size)

    @rule(upward=st.booleans())
    def finish(self, upward: bool) -> None:
        self.talk.finish(upward)

    @rule(turns=st.lists(st.booleans(), min_size=1, max_size=6))
    def turn(self, turns: list[bool]) -> None:
        for clients in turns:
            self.talk.client_turns() if clients else self.talk.server_turns()
            self.talk.is_true()

    @rule()
    def patience_ends(self) -> None:
        self.talk.patience_ends()

    @rule(upward=st.booleans(), place=places, mask=masks)
    def flip(self, upward: bool, place: int, mask: int) -> None:
        self.talk.flip(upward, place, mask)

    @rule(upward=st.booleans(), size=st.sampled_from([0, 0, 1, 17, 34, 5000]))
    def is_over(self, upward: bool, size: int) -> None:
        """Nothing can come after this; the rules that follow find a talk that has just begun."""
        self.talk.break_off(upward, size) if size else self.talk.settle()
        self.talk = Talk("aes-128-gcm", upward, chain(repeat(size or 7, 40), repeat(1 << 20)))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "talk"):
            self.talk.is_true()

    def teardown(self) -> None:
        if hasattr(self, "talk"):
            with self.watch:
                self.talk.settle()


def one(*values: int) -> st.SearchStrategy[bytes]:
    return st.sampled_from([bytes([value]) for value in values])


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


def counted(content: bytes) -> bytes:
    return bytes([len(content)]) + content


def named(*names: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from([b"\3" + counted(name.encode()) for name in names])


# What a SOCKS5 client says, part by part: as it should be, and as it should not.
GRAMMAR: dict[str, tuple[st.SearchStrategy[bytes], st.SearchStrategy[bytes]]] = {
    "version": (one(5), one(0, 4, 0x47)),
    "methods": (
        st.sampled_from([b"\1\0", b"\3\2\1\0", counted(bytes(255))]),
        st.binary(max_size=255).map(lambda offered: counted(offered.replace(b"\0", b"\2"))),
    ),
    "version again": (one(5), one(0, 1, 4, 0xFF)),
    "command": (one(1), one(0, 2, 3, 0xFF)),
    "reserved": (one(0), one(1, 0xFF)),  # nobody minds
    "address": (
        st.one_of(
            joined(one(1), st.binary(min_size=4, max_size=4)),
            joined(one(4), st.binary(min_size=16, max_size=16)),
            named(
                "example.com", "x" * 255, "b\u00fccher.example", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"
            ),
        ),
        st.one_of(
            joined(one(0, 2, 5, 0xFF), st.binary(max_size=20)),
            named("", "a\0b", "\u2024.example", "\u00fc" * 127),
            joined(one(3), st.binary(max_size=40).map(counted)),
        ),
    ),
    "port": (st.sampled_from([b"\0\x50", b"\1\0", b"\xff\xff"]), st.just(b"\0\0")),
}
RIGHT = 4  # of eleven clients say nothing wrong


@st.composite
def openings(draw: st.DrawFn) -> bytes:
    """Greeting and request with one part wrong, or none, and perhaps payload; or anything."""
    wrong = draw(st.sampled_from([*["nothing"] * RIGHT, *GRAMMAR]))
    said = b"".join(draw(bad if part == wrong else good) for part, (good, bad) in GRAMMAR.items())
    return said + draw(st.binary(max_size=50)) if draw(st.integers(0, 15)) else draw(st.binary(max_size=60))


DIALLED = [(0, 0), (0, 0), (errno.ECONNREFUSED, 5), (errno.ENETUNREACH, 3), (errno.EHOSTUNREACH, 4)]
DIALLED += [(errno.ETIMEDOUT, 6), (errno.EACCES, 2), (errno.EMFILE, 1)]


class Socks(RuleBasedStateMachine):
    """SOCKS5 clients that say right and wrong things, in any pieces, and some that do not wait."""

    @initialize(method=methods, opening=openings())
    def begin(self, method: str, opening: bytes) -> None:
        self.watch = ExitStack()
        self.watch.enter_context(watched_buffers())
        self.talk = SocksTalk(method, opening)

    @precondition(lambda self: self.talk.can_arrive)
    @rule(size=st.integers(1, 600))
    def arrive(self, size: int) -> None:
        self.talk.arrive(size)

    @precondition(lambda self: self.talk.can_arrive)
    @rule(times=st.integers(1, 40))
    def arrive_byte_by_byte(self, times: int) -> None:
        for _ in range(times):
            self.talk.arrive(1)
            self.talk.is_true()

    @precondition(lambda self: self.talk.waits)
    @rule(how=st.sampled_from(DIALLED))
    def dial(self, how: tuple[int, int]) -> None:
        self.talk.dial(*how)

    @rule(payload=st.one_of(st.binary(min_size=1, max_size=100), st.just(bytes(0x4001))))
    def say(self, payload: bytes) -> None:
        self.talk.say(payload)

    @precondition(lambda self: not self.talk.can_arrive)
    @rule(method=methods, opening=openings())
    def next_client(self, method: str, opening: bytes) -> None:
        self.talk.end()
        self.talk = SocksTalk(method, opening)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "talk"):
            self.talk.is_true()

    def teardown(self) -> None:
        if hasattr(self, "talk"):
            with self.watch:
                self.talk.end()


texts = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
GOOD: dict[str, list[Any]] = {
    "server": ["::1", ["192.0.2.1", "example.com"]],
    "server_port": [8388, "443"],
    "password": ["hehe", "ünïcode"],
    "method": ["aes-128-gcm", "chacha20-ietf-poly1305"],
    "timeout": [1, "60"],
    "model": ["fork", "epoll"],
    "workers": [4, "2:8"],
    "service": ["tunnel", "echo"],
    "plugin": [""],
}
contents = st.dictionaries(
    st.sampled_from(sorted(config.FIELDS)) | texts, JSON, max_size=4
) | st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in GOOD.items()})


class Reloads(RuleBasedStateMachine):
    """A configuration that is rewritten and read again, well or badly, as SIGHUP does it.

    What a reload reads is what a fresh start would have read: nothing is left over from before.
    """

    @initialize(command=st.sampled_from([config.SERVE, config.LOCAL, config.FORWARD]), uri=st.booleans())
    def begin(self, command: str, uri: bool) -> None:
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name, "config.json")
        self.path.write_text("{}")
        self.flags: dict[str, Any] = {"config": str(self.path)}
        if uri and command != config.SERVE:
            self.flags["server"] = config.format_uri("aes-128-gcm", "hehe", config.parse_address("[::1]:80"))
        self.command = command
        self.gatherer = self.fresh()

    def fresh(self) -> Gatherer:
        return Gatherer(self.command, argparse.Namespace(**self.flags))

    @rule(content=contents)
    def rewrite(self, content: dict[str, Any]) -> None:
        self.path.write_text(json.dumps(content))

    @rule(noise=st.binary(max_size=60))
    def spoil(self, noise: bytes) -> None:
        self.path.write_bytes(noise)

    @rule(keep=st.integers(0, 200))
    def cut(self, keep: int) -> None:
        os.truncate(self.path, min(keep, self.path.stat().st_size))

    @rule()
    def read_again(self) -> None:
        assert outcome(self.gatherer) == outcome(self.fresh())

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()


def outcome(gatherer: Gatherer) -> object:
    """The values and warnings, or the complaint; a password of the server's own choice is any password."""
    chosen_before = gatherer.password
    try:
        values, warnings = gatherer.read()
    except ConfigError as error:
        one_line(str(error))
        return str(error)
    if gatherer.password and values.get("password") == gatherer.password:
        assert chosen_before in (None, gatherer.password), "clients know the first one"
        values["password"] = None
    return values, warnings


def one_line(complaint: str) -> None:
    assert complaint
    assert complaint.isprintable(), f"not one line for a person: {complaint!r}"


class Secrets(RuleBasedStateMachine):
    """Values by any road, and the Secret or the one line that comes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.values: config.Values = {}

    @rule(
        name=st.sampled_from(["method", "password", "key"]),
        value=JSON | st.sampled_from(["aes-128-gcm", "AAAA"]),
    )
    def set(self, name: str, value: Any) -> None:
        try:
            self.values[name] = config.check(name, value, "here")
        except ConfigError as error:
            complaint = str(error)
        else:
            return
        one_line(complaint)
        if name != "method" and isinstance(value, str) and len(value) > 6:
            assert value not in complaint, "a secret in an error"

    @rule(noise=st.text(max_size=40))
    def paste(self, noise: str) -> None:
        try:
            self.values |= config.parse_uri("ss://" + noise)
        except ConfigError as error:
            one_line(str(error))

    @precondition(lambda self: self.values)
    @rule()
    def use(self) -> None:
        try:
            config.secret_of(self.values, "here")
        except ConfigError as error:
            one_line(str(error))


def stories(machine: type[RuleBasedStateMachine]) -> Any:
    """Stories of 30 steps; a hundred, or as many as the profile says."""
    case = machine.TestCase
    case.settings = settings(stateful_step_count=30, max_examples=max(100, settings().max_examples))
    return case


stories.__test__ = False  # type: ignore[attr-defined]
TestRecords = stories(Records)
TestSessions = stories(Sessions)
TestSocks = stories(Socks)
TestReloads = stories(Reloads)
TestSecrets = stories(Secrets)
