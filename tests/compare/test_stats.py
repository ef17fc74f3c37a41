"""Percentiles, intervals and ranks on data whose answers are known."""

from __future__ import annotations

import random

import pytest

from compare.stats import (
    BETTER,
    SAME,
    WORSE,
    Estimate,
    estimate,
    evenness,
    geometric_mean,
    noise_floor,
    outliers,
    percentile,
    ranks,
    verdict,
)


def test_percentiles_are_values_that_were_measured() -> None:
    """Nearest rank, on 1 to 100: the p-th percentile is p itself."""
    counts = [(value, 1) for value in range(100, 0, -1)]
    assert [percentile(counts, part) for part in (0.01, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]


def test_percentiles_weigh_counts() -> None:
    assert percentile([(10, 98), (700, 2)], 0.98) == 10
    assert percentile([(10, 98), (700, 2)], 0.981) == 700


def test_percentiles_agree_with_sorting_everything() -> None:
    chance = random.Random(3)
    counts = [(value, chance.randint(1, 9)) for value in range(60)]
    flat = sorted(value for value, count in counts for _ in range(count))
    for place in range(1, len(flat) + 1):
        assert percentile(counts, place / len(flat)) == flat[place - 1]


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_interval_holds_the_median_and_no_more_than_the_data() -> None:
    found = estimate([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found.value == 3
    assert 1 <= found.low < found.value < found.high <= 5


def test_interval_of_the_same_data_is_the_same() -> None:
    chance = random.Random(4)
    values = [chance.gauss(10, 3) for _ in range(12)]
    assert len({estimate(values) for _ in range(5)}) == 1


def test_interval_shrinks_with_more_rounds() -> None:
    chance = random.Random(1)
    few = estimate([chance.gauss(100, 5) for _ in range(5)])
    many = estimate([chance.gauss(100, 5) for _ in range(80)])
    assert many.high - many.low < (few.high - few.low) / 2


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """The bootstrap of a median from 15 rounds: about 95 in 100, and never far from it."""
    chance = random.Random(2)
    held = 0
    for seed in range(150):
        found = estimate([chance.gauss(10, 1) for _ in range(15)], seed)
        held += found.low <= 10 <= found.high
    assert 0.88 <= held / 150 <= 0.99


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 5)


def test_ranks_are_shared_where_intervals_overlap() -> None:
    found = {"a": interval(1, 2), "b": interval(1.5, 3), "c": interval(4, 5), "d": interval(4.5, 6)}
    assert ranks(found) == {"a": 1, "b": 1, "c": 3, "d": 3}


def test_ranks_of_a_chain_do_not_tie_its_ends() -> None:
    found = {"a": interval(1, 2), "b": interval(1.9, 3), "c": interval(2.9, 4)}
    assert ranks(found) == {"a": 1, "b": 1, "c": 2}


def test_ranks_of_rates_go_the_other_way() -> None:
    assert ranks({"slow": interval(1, 2), "fast": interval(8, 9)}, more_is_better=True) == {
        "slow": 2,
        "fast": 1,
    }


def test_less_than_the_resolution_apart_is_not_apart() -> None:
    assert ranks({"a": interval(100, 100.1), "b": interval(101, 101.1)}) == {"a": 1, "b": 1}
    assert ranks({"a": interval(100, 100.1), "b": interval(104, 104.1)}) == {"a": 1, "b": 2}


def test_one_round_ranks_nobody() -> None:
    assert ranks({"a": Estimate(1, 1, 1, 1), "b": Estimate(9, 9, 9, 1)}) == {}


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 100.0]) == pytest.approx(10)


def test_outliers_are_found_but_a_spread_is_none() -> None:
    assert outliers([10.0, 10.1, 9.9, 10.0, 30.0]) == [4]
    assert outliers([8.0, 9.0, 10.0, 11.0, 12.0]) == []


def test_evenness_is_jains_index() -> None:
    assert evenness([7, 7, 7]) == pytest.approx(1)
    assert evenness([9, 0, 0]) == pytest.approx(1 / 3)
    assert evenness([3, 1]) == pytest.approx(16 / 20)
    assert evenness([0, 0]) == 1


def runs(chance: random.Random, rows: int, rounds: int, scatter: float) -> list[list[float]]:
    """Equal rows: what differs is chance."""
    return [[100 * chance.lognormvariate(0, scatter) for _ in range(rounds)] for _ in range(rows)]


@pytest.mark.parametrize("rounds", [2, 3, 5, 9])
def test_equal_rows_are_told_apart_in_one_run_of_twenty_at_most(rounds: int) -> None:
    """Few rounds too: of two, intervals alone would tell every fifth pair apart."""
    chance = random.Random(rounds)
    wrong = without_floor = 0
    for _ in range(100):
        rows = runs(chance, 8, rounds, 0.1)
        one, other = estimate(rows[0]), estimate(rows[1])
        wrong += verdict(one, other, floor=noise_floor(rows)) != SAME
        without_floor += verdict(one, other) != SAME
    assert wrong <= 5
    if rounds == 2:
        assert without_floor > 10


def test_noise_floor_is_what_chance_does_to_two_medians() -> None:
    """Of two equal rows, 2 in 100 are further apart; dear and cheap rows say the same."""
    chance = random.Random(8)
    rows = runs(chance, 30, 5, 0.04)
    floor = noise_floor(rows)
    beyond = 0
    for _ in range(400):
        one, other = (estimate(row).value for row in runs(chance, 2, 5, 0.04))
        beyond += max(one / other, other / one) - 1 > floor
    assert 0.005 <= beyond / 400 <= 0.05
    assert noise_floor([[value * 50**place for value in row] for place, row in enumerate(rows)]) == (
        pytest.approx(floor)
    )


def test_noise_floor_of_nothing_is_none() -> None:
    assert noise_floor([]) == noise_floor([[1.0]]) == noise_floor([[0.0, 0.0]]) == 0
    assert noise_floor([[5.0, 5.0, 5.0]]) == 0


def test_ranks_need_more_than_the_floor() -> None:
    found = {"a": interval(100, 102), "b": interval(108, 110)}
    assert ranks(found, floor=0.05) == {"a": 1, "b": 2}
    assert ranks(found, floor=0.09) == {"a": 1, "b": 1}


def test_verdicts_know_which_way_is_good() -> None:
    low, high = interval(1, 2), interval(4, 5)
    assert (verdict(low, high), verdict(high, low)) == (WORSE, BETTER)
    assert (verdict(low, high, True), verdict(high, low, True)) == (BETTER, WORSE)
    assert verdict(low, interval(1.5, 3)) == SAME
    assert verdict(Estimate(1, 1, 1, 1), Estimate(9, 9, 9, 1)) == SAME
