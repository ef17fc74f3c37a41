"""What makes a machine's figures doubtful is said, and what two machines do not share."""

from __future__ import annotations

import re
from typing import Any

import pytest

from compare import environment
from compare.bench import Cores
from compare.environment import doubts, resumed, unlike

GOOD = {
    "governor": "performance",
    "cores": 4,
    "load_average": [0.3, 0.0, 0.0],
    "steal_seconds": 0.1,
    "cpu_quota": "max 100000",
    "revision": "0123456789ab",
}


def test_a_good_machine_is_not_doubted() -> None:
    assert doubts(GOOD, 100.0) == []
    assert doubts({}, 100.0) != doubts(GOOD, 100.0)  # of an old result one core is all that is known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"governor": "powersave"}, "governor is powersave"),
        ({"cores": 1}, "One core"),
        ({"load_average": [2.1, 0, 0]}, "load average was 2.1"),
        ({"steal_seconds": 8.0}, "for 2.0% of the time (steal)"),
        ({"cpu_quota": "50000 100000"}, "cpu.max: 50000 100000"),
        ({"revision": "0123456789ab-dirty"}, "not committed"),
        ({"resumed": ["2026-01-02T03:04:05Z, as before."]}, "Resumed: 2026"),
    ],
)
def test_what_is_doubtful_is_said(change: dict[str, Any], said: str) -> None:
    (found,) = doubts({**GOOD, **change}, 100.0)
    assert said in found


def test_what_figures_depend_on_is_captured() -> None:
    now = environment.capture(Cores((0,), (1,), (1,)), ["compare", "run"])
    for name in ("kernel", "cpu", "cpu_flags", "cores", "governor", "pinned", "load_average", "memory_mb"):
        assert name in now
    for name in (
        "python",
        "libc",
        "cryptography",
        "openssl_of_cryptography",
        "openssl_of_python",
        "unp_tunnel",
    ):
        assert re.search(r"\d", now[name]), name
    assert now["pinned"] == {"server": [0], "generator": [1], "target": [1]}
    assert now["command"] == ["compare", "run"]
    assert set(now["limits"]) == {"processes", "address_space"}
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?|unknown", now["revision"])
    assert environment.stolen() >= 0


@pytest.mark.parametrize("words", [["--out", "results/one"], ["--out=results/one"]])
def test_where_a_result_lies_is_no_part_of_the_command(words: list[str]) -> None:
    given = ["run", *words, "--seed", "7"]
    assert environment.command_line(given) == ["compare", "run", "--seed", "7"]


def test_a_run_that_goes_on_elsewhere_says_so() -> None:
    before = {
        "started": "1",
        "revision": "a",
        "kernel": "Linux 6",
        "pinned": {"server": [0]},
        "steal_seconds": 2.0,
    }
    same = resumed(before, {**before, "started": "2"})
    assert same["resumed"] == ["2, as before."]
    assert (same["started"], same["steal_seconds"]) == ("1", 2.0)
    moved = resumed(same, {**before, "started": "3", "kernel": "Linux 7", "revision": "b"})
    assert moved["resumed"][1] == "3, not as before: kernel: Linux 6 and Linux 7; revision: a and b."


def test_lists_and_tuples_are_alike() -> None:
    """What was captured now, and what was read from a file."""
    assert unlike({"pinned": {"server": (0,)}}, {"pinned": {"server": [0]}}) == []
    assert unlike({"cores": 2}, {}) == ["cores: 2 and unknown"]
