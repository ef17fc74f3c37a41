"""Statistics: exact percentiles, intervals by bootstrap, ranks that admit a tie.

    figures of one row, one a round --bootstrap--> median and its 95% interval
    intervals of all rows --> rank = 1 + how many rows are surely better

Rules: nothing is dropped. Two rows are told apart only if their intervals do not overlap, each made
wider by RESOLUTION: where a server's memory happens to lie moves its figures by that much from one
start to the next, whatever few rounds say. The bootstrap is seeded, so a report made twice is the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.95
RESAMPLES = 2000
RESOLUTION = 0.01  # of the value, to either side


class Estimate(NamedTuple):
    """A median over rounds, and where it probably lies. No interval from fewer than two rounds."""

    value: float
    low: float
    high: float
    rounds: int

    def surely_below(self, other: Estimate) -> bool:
        return self.high * (1 + RESOLUTION) < other.low * (1 - RESOLUTION)


def percentile(counts: Iterable[tuple[float, int]], part: float) -> float:
    """The smallest value that at least `part` of all are not above (nearest rank), 0 < part <= 1."""
    ordered = sorted(counts)
    total = sum(count for _, count in ordered)
    if not total:
        raise ValueError("no values")
    wanted = math.ceil(part * total - 1e-9)
    seen = 0
    for value, count in ordered:
        seen += count
        if seen >= wanted:
            return value
    raise AssertionError("part is above 1")


def estimate(values: Sequence[float], seed: int = 1) -> Estimate:
    """Median and bootstrap interval (percentile method) of at least one value."""
    chance = random.Random(seed)
    count = len(values)
    medians = sorted(median(chance.choices(values, k=count)) for _ in range(RESAMPLES if count > 1 else 1))
    tail = (1 - CONFIDENCE) / 2
    low = medians[math.floor(tail * (len(medians) - 1))]
    high = medians[math.ceil((1 - tail) * (len(medians) - 1))]
    return Estimate(median(values), low, high, count)


def ranks(estimates: Mapping[str, Estimate], more_is_better: bool = False) -> dict[str, int]:
    """Ranks from 1; rows that cannot be told apart share one. Empty if any has fewer than two rounds."""
    if any(item.rounds < 2 for item in estimates.values()):
        return {}

    def better(one: Estimate, other: Estimate) -> bool:
        return other.surely_below(one) if more_is_better else one.surely_below(other)

    return {
        name: 1 + sum(better(other, item) for other in estimates.values()) for name, item in estimates.items()
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def evenness(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all shares are alike, 1/n when one of n has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def outliers(values: Sequence[float]) -> list[int]:
    """Indices of values beyond 5 median absolute deviations (and 5%): worth a look, never dropped."""
    if len(values) < 5:
        return []
    middle = median(values)
    deviation = median(abs(value - middle) for value in values)
    reach = max(5 * deviation, 0.05 * abs(middle))
    return [index for index, value in enumerate(values) if abs(value - middle) > reach]
