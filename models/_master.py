"""Parents and children: how a process is started, watched, replaced and ended.

                    +-- worker (accept, serve, accept, ...) --+
    master ---------+-- worker                                +--> scoreboard: state, last sign of life
      |             `-- worker  ... between MIN and MAX ------+
      |
      `-- takes signals     CHLD         reap; start what is missing
          one by one        TERM         TERM to all, wait for them        HUP     a new generation
                            INT, QUIT    KILL to all                       TTIN    one more
                            ALRM         the grace time is over: KILL      TTOU    one less
                            USR1         open the log again, all of us     USR2    hand the listener on

The master serves nobody. It blocks its signals and takes them with sigtimedwait, so there is no
handler, and nothing that a handler could interrupt.

Rules:
- Every child that was started is waited for.
- Few idle workers are better than many: those that take turns keep the processor's cache warm for one
  another. So the pool starts small, grows when nobody waits for a client, and shrinks slowly.
- A worker that ends before its first accept was never of use: the next one is started after a pause
  that doubles, and after the fifth in a row the server ends with EX_SOFTWARE.
- A worker that gives no sign of life for HUNG seconds is killed. Working is a sign of life.
- A new generation is started before the old one is asked to end, so the listener is never alone.
- A worker whose master has gone ends after its client.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

from setproctitle import setproctitle

from models._pump import rehearse
from models._scoreboard import IDLE, WAITING, Slot
from models._server import Server
from models._stop import die_by, kill_all
from tunnel.drain import Drain
from tunnel.log import log

MASTER_SIGNALS = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGCHLD,
    signal.SIGALRM,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
TICK = 1.0  # seconds between looks at the scoreboard while there is anything to look for
RETIRE_EVERY = 5.0  # seconds; one worker too many is sent home each time
HUNG = 30.0  # seconds without a sign of life
FIRST_PAUSE, STILLBIRTHS = 0.1, 5  # seconds before the next start, doubling; how many in a row are enough
JITTER = 0.1  # of max_requests, so that not all workers are replaced at once


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


class Children:
    """The children that serve one client each: which they are, and how they are reaped."""

    def __init__(self, server: Server) -> None:
        self._scoreboard = server.scoreboard
        self._slots: dict[int, Slot] = {}  # by pid
        self._early: set[int] = set()  # reaped before `started` was told of them
        server.stop.children = self._slots.keys()

    def started(self, pid: int, slot: Slot) -> None:
        """A child that serves; it may have ended, and been reaped, before this is called."""
        self._slots[pid] = slot
        if pid in self._early:
            self._early.discard(pid)
            self._end(pid)

    def reap(self, _number: int, _frame: FrameType | None) -> None:
        """The SIGCHLD handler. One signal may stand for many children (UNP 5.10)."""
        # fig: SIGCHLD handler
        while pid := reap_one()[0]:
            if pid in self._slots:
                self._end(pid)
            else:
                self._early.add(pid)
        # end fig

    def wait(self) -> None:
        """Lets transfers finish, and those go that only drain."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self._slots:
            os.kill(pid, signal.SIGTERM)
        while self._slots:
            self._end(os.wait()[0])

    def _end(self, pid: int) -> None:
        if slot := self._slots.pop(pid, None):
            self._scoreboard.give_back(slot)


class Worker:
    """What the master knows of a child, beside its slot."""

    __slots__ = ("leaving", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.leaving = False  # it has been asked to


class Pool:
    """The workers of one server. `run` returns when all have ended as asked, and raises SystemExit
    with EX_SOFTWARE if they cannot even start."""

    def __init__(self, server: Server, work: Callable[[Server, Slot], None]) -> None:
        self._server = server
        self._work = work
        self._least, self._most = server.service.workers
        self._workers: dict[int, Worker] = {}  # by pid, oldest first
        self._name = server.scoreboard.board.totals().model
        self._stopping = False
        self._stillborn = 0  # in a row
        self._start_after = 0.0  # monotonic
        self._retire_at = 0.0

    def run(self) -> None:
        setproctitle(f"tunnel: {self._name} master")
        rehearse(self._server)
        gc.freeze()  # see fork.py
        signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
        if self._server.stop.requested:
            return  # by a SIGTERM that came before there was anybody to pass it on to
        while self._workers or not self._stopping:
            if not self._stopping:
                self._fill()
                self._retire()
            received = signal.sigtimedwait(MASTER_SIGNALS, TICK)
            if received is None:
                self._kill_hung()
            else:
                self._handle(received.si_signo)

    def _staying(self) -> list[int]:
        return [pid for pid, worker in self._workers.items() if not worker.leaving]

    def _fill(self) -> None:
        """Starts what is missing: workers, or one that waits for a client."""
        board = self._server.scoreboard.board
        while True:
            enough = self._least if board.anybody_waits() else self._most
            if len(self._staying()) >= enough or time.monotonic() < self._start_after:
                return
            self._start()

    def _start(self) -> None:
        slot = self._server.scoreboard.take()
        try:
            pid = os.fork()
        except OSError as error:
            log.error(f"cannot start a worker: {error.strerror}")
            self._server.scoreboard.forget(slot)
            self._start_after = time.monotonic() + TICK
            return
        if pid == 0:
            run_child(partial(self._be_worker, slot))
        self._workers[pid] = Worker(slot)

    def _be_worker(self, slot: Slot) -> None:
        server = self._server
        master = server.stop.pid
        slot.own(f"tunnel: {self._name} worker {slot.number}", master)
        server.stop.install(parent=master)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)
        server.drain = Drain()
        if enough := server.service.max_requests:
            server.accept.left = enough - random.randrange(max(1, int(enough * JITTER)))
        self._work(server, slot)

    def _retire(self) -> None:
        """Sends one idle worker home, if there are more than there must be and another one waits."""
        now = time.monotonic()
        if now < self._retire_at:
            return
        self._retire_at = now + RETIRE_EVERY
        staying = self._staying()
        waiting = [pid for pid in staying if self._workers[pid].slot.entry().state in WAITING]
        if len(staying) > self._least and len(waiting) > 1:
            self._send_home(waiting[-1])

    def _send_home(self, pid: int) -> None:
        self._workers[pid].leaving = True
        os.kill(pid, signal.SIGTERM)

    def _kill_hung(self) -> None:
        for pid, worker in self._workers.items():
            if time.monotonic() - worker.slot.entry().beat > HUNG:
                log.error(f"worker {pid} has given no sign of life for {HUNG:g} s: killed")
                os.kill(pid, signal.SIGKILL)

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGTERM and not self._stopping:
            self._stop()
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM):
            self._end_at_once(number)
        elif number == signal.SIGUSR1:
            log.reopen()
            for pid in self._workers:
                os.kill(pid, signal.SIGUSR1)
        elif number == signal.SIGUSR2:
            self._server.stop.renewal.upgrade()
        elif number == signal.SIGHUP:
            self._renew()
        else:
            self._resize(1 if number == signal.SIGTTIN else -1)

    def _stop(self) -> None:
        self._stopping = True
        grace = self._server.stop.grace
        log.info(f"stopping: transfers have {grace:g} s to finish")
        self._server.stop.close_listeners()
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, grace)

    def _renew(self) -> None:
        """A new generation of workers, with the configuration as it is now."""
        if not self._server.stop.renewal.reload():
            return
        old = self._staying()
        self._least, self._most = self._server.service.workers
        for _ in range(self._least):
            self._start()
        for pid in old:
            self._send_home(pid)

    def _resize(self, by: int) -> None:
        self._least = max(1, self._least + by)
        self._most = max(self._least, self._most + by)
        staying = self._staying()
        if by < 0 and len(staying) > self._least:
            self._send_home(staying[-1])
        log.info(f"pool is now {self._least} to {self._most} workers")

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
            worker = self._workers.pop(pid, None)
            if worker is None:
                continue  # not a worker: the new program that SIGUSR2 started, and that failed
            stillborn = worker.slot.entry().state == IDLE and status != 0
            self._server.scoreboard.give_back(worker.slot)
            if status == 0:
                self._stillborn = 0
                continue
            code = os.waitstatus_to_exitcode(status)
            how = f"exited with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
            log.warning(f"worker {pid} {how}" + ("" if self._stopping else ": it will be replaced"))
            self._bury(stillborn)

    def _bury(self, stillborn: bool) -> None:
        """After a death: when may the next worker start, or is there no hope?"""
        self._stillborn = self._stillborn + 1 if stillborn else 0
        if self._stillborn == STILLBIRTHS and not self._stopping:
            log.error(f"{STILLBIRTHS} workers in a row ended before their first accept: giving up")
            kill_all(self._workers)
            raise SystemExit(os.EX_SOFTWARE)
        if stillborn:
            self._start_after = time.monotonic() + FIRST_PAUSE * 2**self._stillborn
