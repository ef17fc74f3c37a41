"""Whether a sample may be believed: was it the server that was measured, or the generator?

    late         part of requests that the generator sent over 1 ms after it could have   <= 1 %
    its core     generator (and target, where they share one)                             <  95 %
    its time     part in which its loop waited for a server                               >= 5 %
    beside       a bulk stream, of what several move without small requests               >= 1/4
    Little       N = X * R: in flight, answers a second, seconds each                     within 10 %

Latency at an offered rate says nothing once the generator is late: such a sample is `invalid`. Where
each client waits for its answer (closed loop), a generator that is too slow makes the throughput its
own, and the server's CPU figures stand: `limited`.

Little's law holds for every system in which nothing is lost. The number in flight is counted by the
generator's loop, the time of each request by its own stamps: a request that is lost, counted twice or
stamped late makes the two disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LATE = 0.01  # of all requests
LITTLE = 0.1  # by which both sides may differ
STARVED = 0.25  # of the rate that bulk streams have by themselves: a slower one holds up nobody
SATURATED = 0.95  # of a core
SPARE = 1 - SATURATED  # of the time, in which a generator's loop must have had nothing to do


def why_invalid(
    figures: Mapping[str, float], services: Sequence[tuple[int, int]], generator: float
) -> str | None:
    """Why a sample does not count, its latencies at an offered rate above all.

    generator: the part of its core that was used.
    """
    if figures.get("failures") and not figures["count"]:
        return f"none of {figures['failures']:g} connections was served"
    late = figures.get("late", 0.0)
    if late > LATE:
        return f"the generator was late: {late:.1%} of requests were sent over 1 ms after they were due"
    if "offered" in figures and generator >= SATURATED:
        return f"the generator used {generator:.0%} of its core at {figures['offered']:g} requests/s"
    if figures.get("stream", 0.0) < STARVED * figures.get("streams", 0.0):
        return f"the bulk stream was starved: it moved {figures['stream'] / 1e6:.0f} MB/s"
    off = little(figures, services)
    if off is not None and off > LITTLE:
        return f"Little's law does not hold: in flight and rate times time differ by {off:.0%}"
    return None


def little(figures: Mapping[str, float], services: Sequence[tuple[int, int]]) -> float | None:
    """By how much N and X * R differ, as a part of the larger; None where they were not measured."""
    count = sum(times for _, times in services)
    if "in_flight" not in figures or not count or figures.get("failures"):
        return None
    seconds = sum((value + 0.5) * times for value, times in services) / count / 1e6
    rate = figures["achieved"] if "achieved" in figures else figures["count"] / figures["wall"]
    sides = figures["in_flight"], rate * seconds
    return abs(sides[0] - sides[1]) / max(*sides)


def why_limited(apart: bool, server: float, generator: float, waited: float = 1.0) -> str | None:
    """What held the throughput back, if it was not the server. Arguments: parts of a core.

    waited: the part of the time in which the generator's loop had nothing to do. Less than a core may
    be all that it got, where something else runs on that core.
    """
    if not apart:
        return "server and generator share one core"
    if server >= SATURATED:
        return None
    if generator >= SATURATED:
        return "generator and target use their whole core"
    return f"the generator had something to do {1 - waited:.0%} of the time" if waited < SPARE else None
