"""`prefork-fdpass` without descriptors: in the worker that is passed a client, and in the master."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.rig import SERVE, Rig
from tests.harness.tree import child_pids, wait_until

ENDED = "FIN", "RST"
STANDARD = 3  # descriptors that every process has, 0 to 2


@contextmanager
def no_descriptor_left(pid: int) -> Iterator[None]:
    """That process can open nothing more, and keeps what it has. It may poll three of them."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (STANDARD, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_worker_without_descriptors_loses_one_client_and_then_takes_no_more(tmp_path: Path) -> None:
    """The second one waits. It is served by the same worker, in the one place that the first gave back."""
    with Rig(tmp_path, "prefork-fdpass", SERVE, "--workers", "1", "--max-connections", "1") as rig:
        rig.transfer()
        workers = child_pids(rig.pid)
        with no_descriptor_left(workers[0]):
            lost, second = rig.near(first=b"1"), rig.near(first=b"2")
            assert lost.how_it_ends(2.0) in ENDED
            rig.tunnel.wait_for_lines("client dropped: Too many open files")
            assert second.how_it_ends(0.2) == "open"
        far = rig.far()
        assert far.receive_exactly(1) == b"2"
        assert child_pids(rig.pid) == workers
        assert len(rig.tunnel.matching("Too many open files")) == 1


def test_worker_that_there_is_no_descriptor_for_is_started_later(tmp_path: Path) -> None:
    with Rig(tmp_path, "prefork-fdpass", SERVE, "--workers", "1") as rig:
        rig.transfer()
        with no_descriptor_left(rig.pid):
            os.kill(rig.pid, signal.SIGTTIN)
            rig.tunnel.wait_for_lines("cannot start a worker: Too many open files")
        wait_until(lambda: len(child_pids(rig.pid)) == 2, 4.0, "the second worker is there")
        rig.transfer()
