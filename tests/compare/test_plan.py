"""The order of samples: seeded, in blocks, complete."""

from __future__ import annotations

from collections import Counter

from compare.plan import QUICK, QUICK_MOST, SCENARIOS, Planned, make_plan
from compare.servers import AEAD, DIRECT, ROWS

ALL = [ROWS[name] for name in ("iterative", "fork", "thread", "prefork", "select", "libev", DIRECT, AEAD)]


def test_the_same_seed_gives_the_same_order() -> None:
    assert make_plan(ALL, list(SCENARIOS), 3, 42) == make_plan(ALL, list(SCENARIOS), 3, 42)


def test_another_seed_gives_another_order_of_the_same_samples() -> None:
    one, other = make_plan(ALL, list(SCENARIOS), 3, 1), make_plan(ALL, list(SCENARIOS), 3, 2)
    assert one != other
    assert sorted(one) == sorted(other)


def test_each_round_is_a_block_that_holds_everything_once() -> None:
    plan = make_plan(ALL, list(QUICK), 4, 9)
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
    assert {planned.round for planned in plan if planned.scenario == "children"} == {1, 2, 3}


def test_a_scenario_may_have_fewer_rounds() -> None:
    plan = make_plan(ALL, list(QUICK), 3, 1, QUICK_MOST)
    assert {planned.round for planned in plan if planned.scenario == "memory"} == {1}
    assert {planned.round for planned in plan if planned.scenario == "bulk-up"} == {1, 2, 3}


def test_a_first_impression_is_part_of_the_whole() -> None:
    assert set(QUICK_MOST) < set(QUICK) < set(SCENARIOS)
    assert "children" not in QUICK


def test_every_registered_model_can_be_compared() -> None:
    from models import MODELS

    assert set(MODELS) <= set(ROWS)
