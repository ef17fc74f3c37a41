"""Each input that is kept, once: the seeds, what libFuzzer has found since, and what once broke something.

And the harnesses themselves: each must see a core that does what it should not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.run import NAMES, main
from tests.fuzz.seeds import CORPUS, seeds
from tunnel import aead, config
from tunnel.errors import ConfigError, RecordError

KEPT = [path for path in sorted(CORPUS.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("name", HARNESSES)
def test_every_kept_input_is_survived(name: str) -> None:
    kept = [path for path in KEPT if path.parent.name == name]
    assert kept, f"corpus/{name} is empty"
    for path in kept:
        HARNESSES[name](path.read_bytes())


def test_nothing_lies_in_the_corpus_that_nobody_reads() -> None:
    assert {path.parent for path in KEPT} == {CORPUS / name for name in HARNESSES}
    assert tuple(HARNESSES) == NAMES


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in KEPT) < 300_000
    assert len(KEPT) < 2000


def test_the_seeds_are_those_that_the_code_writes() -> None:
    written = {path.read_bytes() for path in KEPT if path.name.startswith("seed-")}
    assert written == {content for _, content in seeds()}


def test_a_harness_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "no such harness: nothing" in capsys.readouterr().err


# A core with a fault, and the harness that must see it

Break = Callable[[pytest.MonkeyPatch], None]


def opens_without_looking(patch: pytest.MonkeyPatch) -> None:
    """Wrong tags do not end anything."""
    opened = aead.Opener.buffer_updated

    def careless(self: aead.Opener, n: int) -> memoryview:
        try:
            return opened(self, n)
        except RecordError:
            self._error = None
            return memoryview(b"?")

    patch.setattr(aead.Opener, "buffer_updated", careless)


def forgets_what_a_read_cut_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(aead.Opener, "_keep", lambda self, *_: setattr(self, "_filled", 0))


def raises_what_nobody_expects(patch: pytest.MonkeyPatch) -> None:
    def decode(name: bytes) -> str:
        return name.decode()  # UnicodeDecodeError

    patch.setattr("tunnel.address.decode_name", decode)


def takes_an_end_for_a_whole(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(aead.Opener, "eof", lambda _: memoryview(b""))


def loses_what_came_early(patch: pytest.MonkeyPatch) -> None:
    prepend = aead.Sealer.prepend
    patch.setattr(aead.Sealer, "prepend", lambda self, head: prepend(self, head[:12]))


def unwraps_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("tunnel.judge.unwrap", lambda address: address)


def complains_in_two_lines(patch: pytest.MonkeyPatch) -> None:
    def check(name: str, value: Any, where: str) -> Any:
        raise ConfigError(f"{where}: {name}\nis {value}")

    patch.setattr(config, "check", check)


def stumbles_over_a_value(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(config, "check", lambda *arguments: {}[arguments])


def cuts_records_too_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(aead, "MAX_PAYLOAD", 10)


FAULTS: list[tuple[str, Break]] = [
    ("opener", opens_without_looking),
    ("opener", forgets_what_a_read_cut_off),
    ("opener", takes_an_end_for_a_whole),
    ("header", forgets_what_a_read_cut_off),
    ("header", raises_what_nobody_expects),
    ("records", opens_without_looking),
    ("records", forgets_what_a_read_cut_off),
    ("records", takes_an_end_for_a_whole),
    ("records", cuts_records_too_small),
    ("sessions", forgets_what_a_read_cut_off),
    ("sessions", opens_without_looking),
    ("judge", unwraps_nothing),
    ("config", complains_in_two_lines),
    ("uri", complains_in_two_lines),
    ("uri", stumbles_over_a_value),
    ("flags", stumbles_over_a_value),
    ("socks", loses_what_came_early),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_harness_sees_a_fault(name: str, fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    seen = []
    for path in KEPT:
        if path.parent.name == name:
            try:
                HARNESSES[name](path.read_bytes())
            except Exception as error:  # noqa: BLE001 - any is a find
                seen.append(error)
    assert seen, f"{name} does not see a core that {fault.__name__.replace('_', ' ')}"
