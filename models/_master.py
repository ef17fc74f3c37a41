"""Parents and children: how a process is started, watched, replaced and ended.

                    +-- worker (accept, serve, accept, ...) --+
    master ---------+-- worker                                +--> scoreboard: state, last sign of life
      |             `-- worker  ... between MIN and MAX ------+
      |
      `-- takes signals     CHLD         reap; start what is missing
          one by one        TERM         TERM to all, wait for them        HUP     a new generation
                            INT, QUIT    end all at once                   TTIN    one more
                            ALRM         the same: the grace time is over  TTOU    one less
                            USR1         open the log again, all of us     USR2    hand the listener on

The master serves nobody. It blocks its signals and takes them with sigtimedwait, so there is no
handler, and nothing that a handler could interrupt. (One that waits for descriptors too: _watch.py.)

Rules:
- Every child that was started is waited for.
- Few idle workers are better than many: those that take turns keep the processor's cache warm for one
  another. So the pool starts small, grows when nobody waits for a client, and shrinks slowly.
- After a worker that died young the next one is started after a pause that doubles. One that died
  before its first accept was never of use: after the fifth in a row the server ends with EX_SOFTWARE.
- A worker that gives no sign of life for `heartbeat` seconds is killed: by SIGABRT, and if that does not
  do it, a second later by SIGKILL. Working is a sign of life.
- A new generation is started before the old one is asked to end, so the listener is never alone. Whoever
  is asked to end, or has had enough clients, does not count any more, however long its clients stay.
- A worker whose master has gone ends after its client.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from types import FrameType
from typing import NoReturn

from models._rehearsal import rehearse
from models._scoreboard import DIAL, DRAIN, IDLE, WAITING, Slot
from models._server import Server
from models._stop import SEND_HOME, die_by, end_all, signal_all
from models._title import set_title
from tunnel.log import describe, log

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
# Blocked while a child is made: who ends all children, or counts one as ended, must know of every one.
FORKING = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM}
TICK = 1.0  # seconds between looks at the scoreboard while there is anything to look for
RETIRE_EVERY = 5.0  # seconds; one worker too many is sent home each time
YOUNG = 2.0  # seconds; who dies before is replaced after a pause
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 2.0  # seconds; it doubles with each
STILLBIRTHS = 5  # in a row are enough
SCORE = "/proc/self/oom_score_adj"  # proc(5)
DIES_FIRST = 500  # thousandths of the memory that there is, by which a child looks larger to the OOM killer
JITTER = 0.1  # of max_requests, so that not all workers are replaced at once


def score_of_children() -> bytes:
    """If memory runs out, the kernel kills the process with the highest score: the largest, which would
    be the parent, and with it everybody. What a child writes to be killed first; b"" if not on Linux."""
    try:
        with open(SCORE, "rb") as file:
            return b"%d" % min(1000, int(file.read()) + DIES_FIRST)
    except OSError:
        return b""


CHILDRENS_SCORE = score_of_children()  # now: in a child, each step more is pages copied


def offer_to_die_first() -> None:
    try:
        fd = os.open(SCORE, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, CHILDRENS_SCORE)
        os.close(fd)
    except OSError:  # not on Linux, or no descriptor is left for it
        pass


def run_child(work: Callable[..., None], *args: object) -> NoReturn:
    """In a process that was just forked: does the work and ends without the parent's clean-up."""
    code = os.EX_SOFTWARE
    try:
        offer_to_die_first()
        work(*args)
        code = os.EX_OK
    except OSError as error:  # no mistake of ours: as in the command line, one line and a code
        log.error(f"cannot go on: {describe(error)}")
        code = os.EX_OSERR
    except BaseException:  # noqa: BLE001 - shown, and told to the parent by the exit code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


NOBODY = 0, 0  # what waitpid says of children that all go on


def reap_one() -> tuple[int, int]:
    """The pid and wait status of a child that has ended, or NOBODY. Never blocks (UNP 5.10)."""
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return NOBODY


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"exited with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


class Children:
    """The children that serve one client each: which they are, and how they are reaped."""

    def __init__(self, server: Server) -> None:
        self._stop = server.stop
        self._scoreboard = server.scoreboard
        self._limits = server.limits
        self._slots: dict[int, Slot] = {}  # by pid
        server.stop.children = self._slots.keys()

    def started(self, pid: int, slot: Slot) -> None:
        """A child that serves. It is known before a signal can be about it: see FORKING."""
        self._slots[pid] = slot

    def reap(self, _number: int, _frame: FrameType | None) -> None:
        """The SIGCHLD handler. One signal may stand for many children (UNP 5.10)."""
        # fig: SIGCHLD handler
        for pid, status in iter(reap_one, NOBODY):
            served = self._end(pid)
            if served and status and not self._stop.requested:
                log.warning(f"child {pid} {how_it_ended(status)}: so has its client")
        # end fig

    def wait(self) -> None:
        """Lets transfers finish, and those go that only drain."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._stop.terminated:
            signal_all(self._slots, signal.SIGTERM)
        while self._slots:
            self._end(os.wait()[0])

    def _end(self, pid: int) -> bool:
        """False if it was not one of them: the new program that SIGUSR2 started, and that failed."""
        slot = self._slots.pop(pid, None)
        if slot:
            self._scoreboard.give_back(slot)
            self._limits.bury(pid)
        return slot is not None


class Worker:
    """What the master knows of a child, beside its slot."""

    __slots__ = ("aborted", "alive", "leaving", "moved", "slot", "started")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.leaving = False  # it has been asked to
        self.aborted = False  # it has had SIGABRT, for it hung
        self.started = self.alive = time.monotonic()
        self.moved = 0  # connections and bytes when it was last looked at

    def leaves(self) -> bool:
        """It was asked to, or does so by itself."""
        return self.leaving or self.slot.leaves()


class Pool:
    """The workers of one server. `run` returns when all have ended as asked, and raises SystemExit
    with EX_SOFTWARE if they cannot even start. A model may override `wait` and `start`."""

    def __init__(
        self,
        server: Server,
        work: Callable[[Server, Slot], None] | None = None,
        *,
        resizable: bool = True,
    ) -> None:
        self.server = server
        self.work = work  # what a worker does; a model may choose it anew for each
        self.workers: dict[int, Worker] = {}  # by pid, oldest first
        self.stopping = False
        self._resizable = resizable
        self._least, self._most = server.service.workers
        self._name = server.scoreboard.board.totals().model
        self._looked = 0.0  # monotonic, as all times here; for signs of life
        self._stillborn = 0  # in a row
        self._pause = 0.0  # seconds, before the next start
        self._start_after = 0.0
        self._retire_at = 0.0

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
        set_title(f"tunnel: {self._name} master")
        rehearse(self.server)
        gc.freeze()  # see fork.py
        if self.server.stop.requested:
            return  # by a SIGTERM that came before there was anybody to pass it on to
        while self.workers or not self.stopping:
            if not self.stopping:
                self._fill()
                self._retire()
            self._kill_hung()
            number = self.wait(TICK)
            if number is not None:
                self._handle(number)

    def wait(self, seconds: float) -> int | None:
        """The next signal, if one comes within this time.

        Where a stop (SIGSTOP) takes longer than that time, CPython 3.11 returns what was never filled in.
        """
        received = signal.sigtimedwait(MASTER_SIGNALS, seconds)
        return received.si_signo if received and received.si_signo in MASTER_SIGNALS else None

    def start(self) -> int | None:
        """Starts a worker; its pid, or None if it could not be."""
        slot = self.server.scoreboard.take()
        seats = {worker.slot.seat for worker in self._staying().values()}
        slot.seat = next(seat for seat in count() if seat not in seats)
        try:
            pid = os.fork()
        except OSError as error:
            log.error(f"cannot start a worker: {error.strerror}")
            self.server.scoreboard.forget(slot)
            self._start_after = time.monotonic() + TICK
            return None
        if pid == 0:
            run_child(self._be_worker, slot)
        self.workers[pid] = Worker(slot)
        return pid

    def _staying(self) -> dict[int, Worker]:
        return {pid: worker for pid, worker in self.workers.items() if not worker.leaves()}

    def _fill(self) -> None:
        """Starts what is missing: workers, or one that waits for a client."""
        board = self.server.scoreboard.board
        while time.monotonic() >= self._start_after:
            enough = self._least if board.anybody_waits() else self._most
            if len(self._staying()) >= enough:
                return
            self.start()

    def _be_worker(self, slot: Slot) -> None:
        server = self.server
        slot.watched = True
        slot.own(f"tunnel: {self._name} worker {slot.seat}", server.stop.pid if self._elastic() else 0)
        server.stop.on_leaving = partial(leave, slot, server.stop.pid)
        server.stop.install(parent=server.stop.pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)
        server.drain_anew()
        if enough := server.service.max_requests:
            server.accept.left = enough - random_below(max(1, int(enough * JITTER)))
        assert self.work
        self.work(server, slot)
        slot.enter(DRAIN)
        server.finish_draining(slot.beat)

    def _elastic(self) -> bool:
        return self._least < self._most

    def _retire(self) -> None:
        """Sends one idle worker home, if there are more than there must be and another one waits."""
        now = time.monotonic()
        if now < self._retire_at:
            return
        self._retire_at = now + RETIRE_EVERY
        staying = self._staying()
        waiting = [pid for pid, worker in staying.items() if worker.slot.entry().state in WAITING]
        if len(staying) > self._least and len(waiting) > 1:
            self._send_home(waiting[-1])

    def _send_home(self, pid: int, number: int = SEND_HOME) -> None:
        self.workers[pid].leaving = True
        os.kill(pid, number)

    def _kill_hung(self) -> None:
        """Kills who has neither moved anything nor given a sign of life. A dial may take its time."""
        now = time.monotonic()
        if now - self._looked < TICK:
            return
        slept = now - self._looked > 2 * TICK  # the whole server was stopped, perhaps: its workers, too
        self._looked = now
        service = self.server.service
        for pid, worker in self.workers.items():
            entry = worker.slot.entry()
            moved = entry.connections + entry.up + entry.down
            if moved != worker.moved or slept:
                worker.moved, worker.alive = moved, now
            patience = service.heartbeat + (service.dial.timeout if entry.state == DIAL else 0)
            if now - max(worker.alive, entry.beat) > patience:
                if not worker.aborted:  # which leaves a core, where cores are wanted
                    log.error(f"worker {pid} has given no sign of life for {patience:g} s: killed")
                os.kill(pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
                worker.aborted = True

    def _handle(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGTERM and not self.server.stop.terminated:
            self._stop(signal.SIGTERM)
            self.server.stop.begin_grace()
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM):
            self._end_at_once(number)
        elif number == signal.SIGUSR1:
            log.reopen()
            for pid in self.workers:
                os.kill(pid, signal.SIGUSR1)
        elif number == signal.SIGUSR2 and self.server.stop.takes_leave():
            if not self.stopping:
                self._stop(SEND_HOME)
            self.server.stop.say_handed_over()
        elif self.stopping:
            log.warning(f"{signal.Signals(number).name} comes too late: stopping")
        elif number == signal.SIGUSR2:
            self.server.stop.renewal.upgrade()
        elif number == signal.SIGHUP:
            self._renew()
        elif number == signal.SIGTTIN:
            self._resize(1)
        elif number == signal.SIGTTOU:
            self._resize(-1)

    def _stop(self, number: int) -> None:
        """Accepts no more. By SEND_HOME all clients may stay, as long as they want to."""
        self.stopping = True
        self.server.stop.close_listeners()
        for pid in self.workers:
            self._send_home(pid, number)

    def _renew(self) -> None:
        """A new generation of workers, with the configuration as it is now."""
        if not self.server.stop.renewal.reload():
            return
        old = self._staying()
        for worker in old.values():
            worker.leaving = True
        self._least, self._most = self.server.service.workers
        self._start_after = 0.0
        self._fill()
        if len(self._staying()) < self._least:  # no process to be had: the old ones go on as they are
            for worker in old.values():
                worker.leaving = False
            return
        for pid in old:
            self._send_home(pid)

    def _resize(self, by: int) -> None:
        if not self._resizable:
            log.warning(f"{self._name} has a listener for each worker: another number takes a restart")
            return
        self._least = max(1, self._least + by)
        self._most = max(self._least, self._most + by)
        staying = list(self._staying())
        if by < 0 and len(staying) > self._least:
            self._send_home(staying[-1])
        size = f"{self._least} to {self._most}" if self._elastic() else f"{self._least}"
        log.info(f"size of the pool is now {size}")

    def _end_at_once(self, number: int) -> None:
        self.stopping = True
        idle = [pid for pid, worker in self.workers.items() if worker.slot.entry().state in WAITING]
        signal_all(idle, signal.SIGKILL)  # nothing of theirs can be cut, and some cannot be interrupted
        end_all(self.workers)
        self.workers.clear()
        if number == signal.SIGALRM:
            log.warning(f"grace time of {self.server.stop.grace:g} s is over: what still ran was cut")
        else:
            die_by(number)

    def _reap(self) -> None:
        for pid, status in iter(reap_one, NOBODY):
            worker = self.workers.pop(pid, None)
            if worker is None:
                continue  # not a worker: the new program that SIGUSR2 started, and that failed
            died_young = time.monotonic() - worker.started < YOUNG
            before_accept = worker.slot.entry().state == IDLE
            replaced = not (self.stopping or worker.leaves())
            self.server.scoreboard.give_back(worker.slot)
            self.server.limits.bury(pid)
            if status == 0:
                self._stillborn = 0
                continue
            log.warning(
                f"worker {pid} {how_it_ended(status)}" + (": it will be replaced" if replaced else "")
            )
            if not self.stopping:
                self._bury(died_young, before_accept)

    def _bury(self, died_young: bool, before_accept: bool) -> None:
        """After a death: when may the next worker start, or is there no hope?"""
        self._stillborn = self._stillborn + 1 if before_accept else 0
        if self._stillborn == STILLBIRTHS:
            log.error(f"{STILLBIRTHS} workers in a row ended before their first accept: giving up")
            end_all(self.workers)
            raise SystemExit(os.EX_SOFTWARE)
        now = time.monotonic()
        if not died_young:
            self._pause = 0.0
        elif now >= self._start_after:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._start_after = now + self._pause


def random_below(limit: int) -> int:
    """From 0. The random module would seed itself in every child, and copy 45 pages (docs/performance.md)."""
    return int.from_bytes(os.urandom(4), "big") % limit


def leave(slot: Slot, master: int) -> None:
    """In a worker: it accepts no more, and the master need not wait for its end to replace it."""
    slot.leave()
    with contextlib.suppress(ProcessLookupError):
        os.kill(master, signal.SIGCHLD)
