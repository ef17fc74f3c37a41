"""A run: the plan's samples one after the other, whatever happens in between.

    plan --> sample, sample, sample ... --> Result        progress on stderr between samples
      ^          |  `-- Ctrl-C: stop what runs, keep what was measured
      |          `-- after each round: `keep`, so that not even SIGKILL loses more than one
      `-- less what an earlier run of the same plan has taken: --resume

Rules: nothing is drawn while a sample is taken. However the run ends, what it started has ended; until
it has ended, what is kept says that it has not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from compare import environment
from compare.bench import Bench, BenchFailed
from compare.cgroup import cpu_source
from compare.cluster import Cluster
from compare.interrupt import Interrupt, Interrupted
from compare.peers import PEERS
from compare.plan import Planned, make_plan, raise_file_limit
from compare.sample import take
from compare.schema import Result, RowInfo, Settings
from compare.servers import LOOPBACK, PEER, ROWS, Row
from tunnel.config import LOCAL

INTERRUPTED = "interrupted"
UNFINISHED = "killed, or still running"
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


def begun(rows: Sequence[Row], settings: Settings, left_out: Mapping[str, str] | None = None) -> Result:
    """A run that has taken no sample yet."""
    infos = [RowInfo(row.name, row.kind, source_of(row, settings.end), row.summary) for row in rows]
    planned = len(plan_of(rows, settings))
    return Result(settings, {}, infos, planned=planned, left_out=dict(left_out or {}))


def source_of(row: Row, end: str) -> str:
    """Where it is described; of a peer, its program at that end."""
    return (PEERS[row.name].program_of(end) or row.source) if row.kind == PEER else row.source


def plan_of(rows: Sequence[Row], settings: Settings) -> list[Planned]:
    return make_plan(
        rows,
        settings.scenarios,
        settings.rounds,
        settings.seed,
        settings.most,
        points=settings.points,
        only=settings.rows,
    )


def run(
    result: Result,
    interrupt: Interrupt,
    keep: Callable[[Result], None] = lambda _: None,
    progress_to: TextIO = sys.stderr,
    *,
    address: str = LOOPBACK,
    cluster: Cluster | None = None,
) -> None:
    """Takes all samples that `result` lacks, or those until the user interrupts or the bench breaks.

    Says why samples are missing in `stopped`. `keep` is called after each round.
    """
    rows = [ROWS[row.name] for row in result.rows]
    taken = {Planned(sample.row, sample.scenario, sample.round, sample.point) for sample in result.samples}
    plan = [planned for planned in plan_of(rows, result.settings) if planned not in taken]
    before, started = result.elapsed, time.monotonic()
    progress = Progress(progress_to, len(plan), started)
    result.stopped = UNFINISHED
    raise_file_limit()
    try:
        sealed = result.settings.method if result.settings.end == LOCAL else None
        with Bench(interrupt, address, cluster, sealed) as bench:
            now = environment.capture(bench.cores, environment.command_line(sys.argv[1:]))
            now["cpu_source"] = cpu_source()
            now |= cluster.described() if cluster else {}
            result.environment = environment.resumed(result.environment, now) if taken else now
            stolen = environment.stolen() - result.environment["steal_seconds"]
            for done, planned in enumerate(plan):
                progress.show(done, planned)
                at = before + time.monotonic() - started
                sample = take(planned, result.settings, bench, interrupt)
                sample.at = at
                result.samples.append(sample)
                result.elapsed = before + time.monotonic() - started
                result.environment["steal_seconds"] = environment.stolen() - stolen
                if done + 1 < len(plan) and plan[done + 1].round != planned.round:
                    keep(result)
        result.stopped = None
    except Interrupted:
        result.stopped = INTERRUPTED
    except BenchFailed as failure:
        result.stopped = str(failure)
    finally:
        progress.clear()


def chosen_rows(models: Sequence[str], peers: Sequence[str], baselines: Sequence[str]) -> list[Row]:
    return [ROWS[name] for name in (*models, *peers, *baselines)]
