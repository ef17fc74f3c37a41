"""A generator that takes its time before each request: for the tests alone.

python slow_generator.py MILLISECONDS
"""

from __future__ import annotations

import sys
import time

from compare import drive, load, stream

SLOW = float(sys.argv[1]) / 1e3


class Slow(stream.Stream):
    __slots__ = ()

    def begin(self, exchange: stream.Prepared, due: int) -> None:
        end = time.perf_counter() + SLOW
        while time.perf_counter() < end:
            pass
        super().begin(exchange, due)


if __name__ == "__main__":
    drive.Stream = Slow  # type: ignore[attr-defined]
    load.main()
