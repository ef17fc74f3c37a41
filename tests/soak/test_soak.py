"""A short soak, and a soak that must fail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.harness.process import Place
from tests.harness.rig import DEFAULT
from tests.harness.tree import Holdings
from tests.soak.clients import Client, Lost
from tests.soak.run import Kill, Load, State, soak, wrong

BEGIN = State(Holdings(processes=5, threads=6, descriptors=70, zombies=0), 50 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fork", "prefork", "epoll"])
def test_a_few_seconds_of_it(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak(tmp_path, model, 5.0, seed=1, clients=4) == 0
    assert "lost 0" in capsys.readouterr().out


@pytest.fixture
def load() -> Load:
    """One at which nobody was at work."""
    idle = Load.__new__(Load)
    idle.done, idle.cut, idle.lost, idle.kills = Counter(), Counter(), [], []
    return idle


def test_nothing_is_wrong_with_what_is_as_it_was(load: Load) -> None:
    fewer = BEGIN.holds._replace(threads=5, descriptors=66)
    assert wrong(BEGIN, State(fewer, BEGIN.memory + (10 << 20)), load, "all is well") == []


@pytest.mark.parametrize(
    ("holds", "memory", "log", "said"),
    [
        (BEGIN.holds._replace(processes=4), 0, "", "processes=4"),
        (BEGIN.holds._replace(processes=6), 0, "", "processes=6"),
        (BEGIN.holds._replace(threads=7), 0, "", "threads=7"),
        (BEGIN.holds._replace(descriptors=71), 0, "", "descriptors=71"),
        (BEGIN.holds._replace(zombies=1), 0, "", "zombies=1"),
        (BEGIN.holds, 63 << 20, "", "memory is 63 MiB"),
        (BEGIN.holds, 0, "x\nTraceback (most recent call last):", "a traceback"),
    ],
)
def test_what_is_left_over_is_wrong(holds: Holdings, memory: int, log: str, said: str, load: Load) -> None:
    (found,) = wrong(BEGIN, State(holds, memory), load, log)
    assert said in found


def test_only_a_kill_during_a_connection_excuses_its_loss(load: Load) -> None:
    load.kills = [Kill()]
    load.kills[0].dead = 10.0
    load._missed("up", 11.0, OSError("cut"))
    load._missed("up", 9.0, OSError("cut"))
    (loss,) = load.lost
    assert loss.startswith("up: OSError cut")
    assert load.cut == {"up": 1}
    assert wrong(BEGIN, BEGIN, load, "") == [f"lost: {loss}"]


def test_a_client_does_not_take_other_bytes_for_its_own() -> None:
    client = Client(Place("127.0.0.1", 1), Place("127.0.0.1", 1), DEFAULT, "seed")
    with pytest.raises(Lost):
        client._compared(b"x" * 100, 100)


def test_the_same_seed_chooses_the_same() -> None:
    def chosen(seed: str) -> list[str]:
        client = Client(Place("127.0.0.1", 1), Place("127.0.0.1", 1), DEFAULT, seed)
        return [client.visit()[0] for _ in range(50)]

    assert chosen("1-0") == chosen("1-0") != chosen("1-1")
