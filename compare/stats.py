"""Statistics: exact percentiles, intervals by bootstrap, a noise floor, ranks that admit a tie.

    figures of one row, one a round --bootstrap--> median and its 95% interval
    scatter of all rows together ----bootstrap--> noise floor: what chance alone sets two medians apart by
    intervals and floor --> rank = 1 + how many rows are surely better

Rules: nothing is dropped. Two rows are told apart only if their intervals do not overlap, each made
wider by RESOLUTION (where a server's memory happens to lie moves its figures by that much from one
start to the next), and if their medians are further apart than the noise floor. The floor is what
makes few rounds safe: the interval of two values is the two values, but twenty rows of two rounds
know well how much a round scatters. Two rows alone may also be compared round by round (`paired`),
which is sharper where rounds are many. docs/measuring.md has the experiments behind both. The bootstrap
is seeded, so a report made twice is the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import NormalDist, median
from typing import NamedTuple

CONFIDENCE = 0.95
CHANCE = 0.98  # of the noise floor: it is itself known from few rows only, and 19 of 20 must hold
RESAMPLES = 2000
RESOLUTION = 0.01  # of the value, to either side
PAIRS = 6  # rounds from which on two rows may be compared round by round
BETTER, WORSE, SAME = "better", "worse", "no difference"


class Estimate(NamedTuple):
    """A median over rounds, and where it probably lies. No interval from fewer than two rounds."""

    value: float
    low: float
    high: float
    rounds: int

    def surely_below(self, other: Estimate, floor: float = 0.0) -> bool:
        """Lower, beyond both intervals and the noise floor (a part of the value)."""
        apart = self.high * (1 + RESOLUTION) < other.low * (1 - RESOLUTION)
        return apart and self.value * (1 + floor) < other.value


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
    count, ordered = len(values), sorted(values)
    medians = sorted((ordered[low] + ordered[high]) / 2 for low, high in _middles(count, seed))
    low, high = _interval(medians)
    return Estimate(median(values), low, high, count)


def student(chance: float, freedom: int) -> float:
    """How much wider Student's t reaches than the normal distribution (Cornish and Fisher's expansion)."""
    z = NormalDist().inv_cdf((1 + chance) / 2)
    first = (z**2 + 1) / (4 * freedom)
    return 1 + first + (5 * z**4 + 16 * z**2 + 3) / (96 * freedom**2)


def paired(ratios: Sequence[float]) -> Estimate:
    """Of two rows' ratios, one a round, at least two: the bootstrap's interval, expanded as few rounds need.

    Hesterberg's expanded percentiles: the plain ones of n values cover as if n were n - 1 and known well.
    """
    count, ordered = len(ratios), sorted(ratios)
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    reach = z * student(CONFIDENCE, count - 1) * math.sqrt(count / (count - 1))
    medians = sorted((ordered[low] + ordered[high]) / 2 for low, high in _middles(count, 1))
    low, high = _interval(medians, NormalDist().cdf(-reach))
    return Estimate(median(ratios), low, high, count)


def ratio(one: Sequence[float], other: Sequence[float], seed: int = 1) -> Estimate:
    """`other` as a multiple of `one`: of their medians, each resampled for itself. No value may be 0."""
    below, above = sorted(one), sorted(other)
    resamples = zip(_middles(len(one), seed), _middles(len(other), seed + 1), strict=False)
    ratios = [(above[c] + above[d]) / (below[a] + below[b]) for (a, b), (c, d) in resamples]
    low, high = _interval(sorted(ratios))
    return Estimate(median(other) / median(one), low, high, min(len(one), len(other)))


def _interval(resampled: Sequence[float], tail: float = (1 - CONFIDENCE) / 2) -> tuple[float, float]:
    """Where all but `tail` of them lie on either side; they are in order."""
    last = len(resampled) - 1
    return resampled[math.floor(tail * last)], resampled[math.ceil((1 - tail) * last)]


@cache
def _middles(count: int, seed: int) -> list[tuple[int, int]]:
    """Which of `count` values in order stand in the middle of each resample: the same for any values."""
    chance = random.Random(seed)
    found = []
    for _ in range(RESAMPLES if count > 1 else 1):
        picked = sorted(chance.choices(range(count), k=count))
        found.append((picked[(count - 1) // 2], picked[count // 2]))
    return found


def noise_floor(rows: Iterable[Sequence[float]], chance: float = CHANCE, seed: int = 1) -> float:
    """By which part of their value the medians of two equal rows differ at most, with that probability.

    Each row's scatter around its own median, in logarithms so that dear and cheap rows can be put
    together; two medians of as many values are then drawn from it again and again. 0 if nothing scatters.
    """
    scatter: list[float] = []
    counts: list[int] = []
    for row in rows:
        count = len(row)
        if count < 2 or min(row) <= 0:
            continue
        logarithms = [math.log(value) for value in row]
        middle = median(logarithms)
        wider = math.sqrt(count / (count - 1))  # values lie closer to their own median than to the truth
        scatter += [(value - middle) * wider for value in logarithms]
        counts.append(count)
    if not scatter:
        return 0.0
    unsure = student(chance, len(scatter) - len(counts))  # little is known from few values
    dice, count = random.Random(seed), round(median(counts))
    apart = sorted(
        abs(median(dice.choices(scatter, k=count)) - median(dice.choices(scatter, k=count)))
        for _ in range(RESAMPLES)
    )
    return math.expm1(unsure * apart[math.ceil(chance * (RESAMPLES - 1))])


def ranks(
    estimates: Mapping[str, Estimate], more_is_better: bool = False, floor: float = 0.0
) -> dict[str, int]:
    """Ranks from 1; rows that cannot be told apart share one. Empty if any has fewer than two rounds."""
    if any(item.rounds < 2 for item in estimates.values()):
        return {}

    def better(one: Estimate, other: Estimate) -> bool:
        return other.surely_below(one, floor) if more_is_better else one.surely_below(other, floor)

    return {
        name: 1 + sum(better(other, item) for other in estimates.values()) for name, item in estimates.items()
    }


def verdict(one: Estimate, other: Estimate, more_is_better: bool = False, floor: float = 0.0) -> str:
    """What `other` is, beside `one`: BETTER, WORSE, or SAME. Of a single round nothing can be said: SAME."""
    if min(one.rounds, other.rounds) < 2:
        return SAME
    if other.surely_below(one, floor):
        return WORSE if more_is_better else BETTER
    if one.surely_below(other, floor):
        return BETTER if more_is_better else WORSE
    return SAME


def verdict_of_pairs(ratios: Sequence[float], more_is_better: bool = False, floor: float = 0.0) -> str:
    """The same of `other / one`, round by round; of fewer than PAIRS rounds: SAME."""
    if len(ratios) < PAIRS:
        return SAME
    found, least = paired(ratios), max(floor, RESOLUTION)
    if found.low > 1 + RESOLUTION and found.value > 1 + least:
        return BETTER if more_is_better else WORSE
    if found.high < 1 / (1 + RESOLUTION) and found.value < 1 / (1 + least):
        return WORSE if more_is_better else BETTER
    return SAME


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
