"""The order of samples: seeded, in blocks, complete."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from compare import plan
from compare.plan import CHILDREN, FEW, HERD, QUICK, QUICK_MOST, SCENARIOS, UNP, Planned, make_plan
from compare.servers import AEAD, DIRECT, NULL, RELAY, ROWS
from models import MODELS

ALL = [
    ROWS[name] for name in ("iterative", "fork", "thread", "prefork", "select", "libev", DIRECT, RELAY, AEAD)
]


def test_the_same_seed_gives_the_same_order() -> None:
    assert make_plan(ALL, list(SCENARIOS), 3, 42) == make_plan(ALL, list(SCENARIOS), 3, 42)


def test_another_seed_gives_another_order_of_the_same_samples() -> None:
    one, other = make_plan(ALL, list(SCENARIOS), 3, 1), make_plan(ALL, list(SCENARIOS), 3, 2)
    assert one != other
    assert sorted(one) == sorted(other)


def test_each_round_is_a_block_that_holds_everything_once() -> None:
    plan = make_plan(ALL, [name for name in QUICK if SCENARIOS[name].most is None], 4, 9)
    size = len(plan) // 4
    blocks = [plan[start : start + size] for start in range(0, len(plan), size)]
    for number, block in enumerate(blocks, 1):
        assert {planned.round for planned in block} == {number}
        assert set(Counter(block).values()) == {1}
    orders = [[(planned.row, planned.scenario) for planned in block] for block in blocks]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_baselines_are_taken_only_where_they_mean_something() -> None:
    plan = make_plan(ALL, list(SCENARIOS), 1, 1)
    assert Planned(DIRECT, "bulk-up", 1) in plan
    assert Planned(DIRECT, "memory", 1) not in plan
    assert {planned.scenario for planned in plan if planned.row == AEAD} == {"bulk-up", "bulk-down"}


def test_clients_per_child_are_for_pools_alone() -> None:
    plan = make_plan(ALL, list(SCENARIOS), 9, 1)
    assert {planned.row for planned in plan if planned.scenario == "children"} == {"prefork"}
    assert {planned.round for planned in plan if planned.scenario == "children"} == {1, 2}


def test_a_scenario_may_have_fewer_rounds() -> None:
    plan = make_plan(ALL, list(QUICK), 3, 1, QUICK_MOST)
    assert {planned.round for planned in plan if planned.scenario == "memory"} == {1}
    assert {planned.round for planned in plan if planned.scenario == "bulk-up"} == {1, 2, 3}


def test_a_first_impression_is_part_of_the_whole() -> None:
    assert set(QUICK_MOST) < set(QUICK) < set(SCENARIOS)
    assert "children" not in QUICK


def points_of(scenario: str, row: str) -> list[float | None]:
    return SCENARIOS[scenario].points_of(ROWS[row], SCENARIOS[scenario].points)


def test_a_scenario_with_an_axis_has_a_sample_for_each_point() -> None:
    block = make_plan([ROWS["epoll"]], ["sizes"], 1, 1)
    assert sorted(planned.point or 0 for planned in block) == list(SCENARIOS["sizes"].points)
    block = make_plan([ROWS["epoll"]], ["sizes"], 1, 1, points=FEW)
    assert sorted(planned.point or 0 for planned in block) == FEW["sizes"]


def test_a_design_is_asked_for_no_more_clients_than_it_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_OPEN", 100_000)
    assert points_of("concurrency", "iterative") == [1]
    assert points_of("load", "iterative") == []
    assert points_of("mixed", "iterative") == []
    assert points_of("shock", "iterative") == [None]  # one after the other is what it is for
    assert points_of("concurrency", "prethread") == [1, 10]
    assert points_of("idle", "prefork") == [100]
    assert points_of("idle", "select") == [100]  # FD_SETSIZE
    assert points_of("idle", "thread") == [100, 1000]
    assert points_of("idle", "epoll") == points_of("idle", "libev") == [100, 1000, 5000, 10_000]


def test_no_more_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_OPEN", 462)  # of 1,024
    assert points_of("idle", "epoll") == [100]


def test_the_books_pools_are_for_those_that_have_them() -> None:
    assert points_of(UNP, "prefork") == points_of(UNP, "prefork-fdpass") == list(HERD)
    assert points_of(UNP, "prethread") == points_of(UNP, "tornado") == [CHILDREN]
    assert points_of(UNP, "fork") == points_of(UNP, "iterative") == [None]
    assert points_of(UNP, "prefork (again)") == list(HERD)  # a null run takes what its model takes
    assert points_of(UNP, "libev") == points_of(UNP, DIRECT) == []


def test_a_scenario_may_have_fewer_rows() -> None:
    plan = make_plan(ALL, ["connections", "mixed"], 2, 1, only={"mixed": ["fork", "nobody"]})
    assert {planned.row for planned in plan if planned.scenario == "mixed"} == {"fork"}
    assert {"prefork", "libev", DIRECT} <= {
        planned.row for planned in plan if planned.scenario == "connections"
    }


def test_as_many_descriptors_as_the_hard_limit_has() -> None:
    """In a process of its own: a limit that is lowered stays so."""
    script = (
        "import resource as r; n = r.RLIMIT_NOFILE; hard = min(5000, r.getrlimit(n)[1]);"
        "r.setrlimit(n, (256, hard)); from compare import plan; plan.raise_file_limit();"
        "print(plan.MOST_OPEN == (hard - plan.SPARE) // 2, r.getrlimit(n) == (hard, hard))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_the_null_server_is_in_no_report() -> None:
    assert [name for name, scenario in SCENARIOS.items() if NULL in scenario.baselines] == []


def test_a_run_of_everything_takes_few_points_and_few_rounds() -> None:
    for scenario in SCENARIOS.values():
        assert set(scenario.few) <= set(scenario.points)
        assert bool(scenario.few) == bool(scenario.points)
        assert not scenario.points or (scenario.most or 9) <= 2
    rows = [ROWS[name] for name in (*MODELS, "libev", DIRECT, RELAY, AEAD)]
    assert len(make_plan(rows, list(SCENARIOS), 5, 1, points=FEW)) < 1050


def test_every_registered_model_can_be_compared() -> None:
    assert set(MODELS) <= set(ROWS)
