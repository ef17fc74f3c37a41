"""A run: the plan's samples one after the other, whatever happens in between.

    plan --> sample, sample, sample ... --> Result        progress on stderr between samples
                 `-- Ctrl-C: stop what runs, keep what was measured

Rules: nothing is drawn while a sample is taken. However the run ends, what it started has ended.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from compare import environment
from compare.bench import Bench, BenchFailed
from compare.cgroup import cpu_source
from compare.interrupt import Interrupt, Interrupted
from compare.plan import Planned, make_plan
from compare.sample import take
from compare.schema import Result, RowInfo, Settings
from compare.servers import ROWS, Row

INTERRUPTED = "interrupted"
WIDTH = 24  # of the progress bar, in characters


@dataclass
class Progress:
    """A line on a terminal, redrawn between samples; on anything else, silence."""

    stream: TextIO
    total: int
    started: float

    def show(self, done: int, planned: Planned) -> None:
        if not self.stream.isatty():
            return
        filled = WIDTH * done // self.total
        left = (time.monotonic() - self.started) / done * (self.total - done) if done else 0.0
        eta = f", {left:.0f} s left" if done else ""
        self._draw(
            f"[{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{self.total}{eta}:"
            f" round {planned.round}, {planned.scenario}, {planned.row}"
        )

    def clear(self) -> None:
        if self.stream.isatty():
            self._draw("")

    def _draw(self, text: str) -> None:
        self.stream.write(f"\r\033[K{text}")
        self.stream.flush()


def run(
    rows: Sequence[Row],
    settings: Settings,
    interrupt: Interrupt,
    left_out: Mapping[str, str] | None = None,
    progress_to: TextIO = sys.stderr,
) -> Result:
    """Takes all samples, or those until the user interrupts or the bench breaks: see `stopped`."""
    plan = make_plan(
        rows, settings.scenarios, settings.rounds, settings.seed, settings.most, points=settings.points
    )
    started = time.monotonic()
    progress = Progress(progress_to, len(plan), started)
    result = Result(
        settings=settings,
        environment={},
        rows=[RowInfo(row.name, row.kind, row.source, row.summary) for row in rows],
        planned=len(plan),
        left_out=dict(left_out or {}),
    )
    try:
        with Bench(interrupt) as bench:
            result.environment = environment.capture(bench.cores, environment.command_line())
            result.environment["cpu_source"] = cpu_source()
            for done, planned in enumerate(plan):
                progress.show(done, planned)
                at = time.monotonic() - started
                sample = take(planned, settings, bench, interrupt)
                sample.at = at
                result.samples.append(sample)
    except Interrupted:
        result.stopped = INTERRUPTED
    except BenchFailed as failure:
        result.stopped = str(failure)
    finally:
        progress.clear()
    result.elapsed = time.monotonic() - started
    return result


def chosen_rows(models: Sequence[str], peers: Sequence[str], baselines: Sequence[str]) -> list[Row]:
    return [ROWS[name] for name in (*models, *peers, *baselines)]
