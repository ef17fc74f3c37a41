"""Parents and children: how a process is started, watched, replaced and ended.

                    +-- worker (accept, serve, accept, ...) --+
    master ---------+-- worker                                +--> scoreboard: idle or busy
      |             `-- worker  ... between MIN and MAX ------+
      |
      `-- waits for signals    CHLD         reap; start what is missing
                               TERM         TERM to all, wait for them
                               INT, QUIT    KILL to all
                               ALRM         the grace time is over: KILL to all

The master serves nobody. It blocks its signals and takes them one by one with sigtimedwait, so there
is no handler, and nothing that a handler could interrupt.

Rules: every child that was started is waited for. Few idle workers are better than many: those that
take turns keep the processor's cache warm for one another. A worker that dies young is replaced no
faster than once a second, so that a fault at start does not become a fork bomb. A worker whose master
has gone ends after its client.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from models._pump import rehearse
from models._scoreboard import Scoreboard, Slot
from models._server import Server
from models._stop import die_by, kill_all
from tunnel.drain import Drain
from tunnel.log import log

MASTER_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD, signal.SIGALRM}
YOUNG = 1.0  # seconds; a worker that dies earlier has not worked
RETIRE_EVERY = 5.0  # seconds; one worker too many is sent home each time


def run_child(work: Callable[[], None]) -> NoReturn:
    """In a process that was just forked: does the work and ends without the parent's clean-up."""
    code = os.EX_SOFTWARE
    try:
        work()
        code = os.EX_OK
    except BaseException:  # noqa: BLE001 - shown, and told to the parent by the exit code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def reap_one() -> tuple[int, int]:
    """The pid and wait status of a child that has ended; (0, 0) if none has. Never blocks (UNP 5.10)."""
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


class Worker:
    """What the master knows of a child."""

    __slots__ = ("retired", "slot", "started")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.started = time.monotonic()
        self.retired = False


class Pool:
    """The workers of one server. `run` returns when all have ended as asked."""

    def __init__(self, server: Server, work: Callable[[Server, Slot], None]) -> None:
        self._server = server
        self._work = work
        self._board = Scoreboard(server.workers.most)
        self._workers: dict[int, Worker] = {}  # by pid
        self._stopping = False
        self._start_after = 0.0  # monotonic; after a worker has died young
        self._retire_at = 0.0

    def run(self) -> None:
        rehearse(self._server)
        gc.freeze()  # see fork.py
        signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
        if self._server.stop.requested:
            return  # by a SIGTERM that came before there was anybody to pass it on to
        while self._workers or not self._stopping:
            if not self._stopping:
                self._fill()
                self._retire()
            received = signal.sigtimedwait(MASTER_SIGNALS, self._seconds_to_wait())
            if received is not None:
                self._handle(received.si_signo)

    def _missing(self) -> bool:
        """True if a worker should be started: there are too few, or none that waits for a client."""
        least, most = self._server.workers
        return len(self._workers) < (least if self._board.idle() else most)

    def _fill(self) -> None:
        while self._missing() and time.monotonic() >= self._start_after:
            slot = self._board.take()
            try:
                pid = os.fork()
            except OSError as error:
                log.error(f"cannot start a worker: {error.strerror}")
                self._board.give_back(slot)
                self._start_after = time.monotonic() + YOUNG
                return
            if pid == 0:
                run_child(partial(self._be_worker, slot))
            self._workers[pid] = Worker(slot)

    def _retire(self) -> None:
        """Sends one idle worker home, if there are more than there must be and one other idles."""
        now = time.monotonic()
        if now < self._retire_at:
            return
        self._retire_at = now + RETIRE_EVERY
        if len(self._workers) > self._server.workers.least and self._board.idle() > 1:
            for pid, worker in reversed(self._workers.items()):
                if self._board.is_idle(worker.slot) and not worker.retired:
                    worker.retired = True
                    os.kill(pid, signal.SIGTERM)
                    return

    def _seconds_to_wait(self) -> float:
        if self._stopping or len(self._workers) == self._server.workers.least:
            return 3600.0
        due = self._start_after if self._missing() else self._retire_at
        return max(0.0, due - time.monotonic())

    def _be_worker(self, slot: int) -> None:
        stop = self._server.stop
        stop.install(parent=stop.pid)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the master decides
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)
        self._work(self._server._replace(drain=Drain()), self._board.slot(slot))

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGTERM and not self._stopping:
            self._stopping = True
            grace = self._server.stop.grace
            log.info(f"stopping: transfers have {grace:g} s to finish")
            self._server.stop.close_listeners()
            for pid in self._workers:
                os.kill(pid, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, grace)
        else:
            self._end_at_once(number)

    def _end_at_once(self, number: int) -> None:
        kill_all(self._workers)
        while self._workers:
            self._workers.pop(os.wait()[0], None)
        if number == signal.SIGALRM:
            log.warning(f"grace time of {self._server.stop.grace:g} s is over: what still ran was cut")
        else:
            die_by(number)

    def _reap(self) -> None:
        while (ended := reap_one())[0]:
            pid, status = ended
            worker = self._workers.pop(pid)
            self._board.give_back(worker.slot)
            if status == 0 and (self._stopping or worker.retired):
                continue
            code = os.waitstatus_to_exitcode(status)
            how = f"exited with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
            log.warning(f"worker {pid} {how}" + ("" if self._stopping else ": it will be replaced"))
            if time.monotonic() - worker.started < YOUNG:
                self._start_after = time.monotonic() + YOUNG
