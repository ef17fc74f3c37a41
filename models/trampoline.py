"""Trampoline: each client is a generator, and a scheduler bounces from one to the next.

    +------------------------------ the only thread ------------------------------+
    |   ready:  [ client 3 | copy up of 1 ]      <-- woken: what it waits for came|
    |              |                                    |                         |
    |   +--> task.code.send(came) --> runs on to its next yield                   |
    |   |          `-- read_wait(sock), write_wait(sock), pause(seconds) --+      |
    |   |                                                                  v      |
    |   `------- poll: every descriptor that a task waits for, until the first timer
    +-----------------------------------------------------------------------------+
              names: a few helper threads, which wake poll through a descriptor

Beazley, "A Curious Course on Coroutines and Concurrency" (2009), where a task yields its system calls
to a small operating system. There a scheduler keeps a stack for each task, and bounces between the
generators that call one another, hence the name; `yield from` does that in the language now.
The wait below is UNP 6.10's poll.

Differs from `poll`: the same system calls in the same order, but a client is a function with local
variables and a try block (_tasks.py), and not a state machine that is called back (_relay.py).
Good when: a conversation has many steps; what comes next stands on the next line.
Breaks when: a task computes for long, or blocks: nobody else runs. And every step costs a walk through
the generators between the scheduler and the one that yields.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress

from models._server import ACCEPTS_AT_ONCE, OUT_OF_RESOURCES, RESOURCE_PAUSE, WAKES, Server
from models._tasks import Clients, Code, Task, Wait, pause, read_wait
from models._timers import Timers

ENDS = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Trampoline:
    """The scheduler: see `_tasks.Scheduler` for what tasks ask of it."""

    def __init__(self) -> None:
        self.current: Task
        self._ready: deque[tuple[Task, bool | None]] = deque()  # and what their yield returns
        self._waiting: dict[tuple[int, int], Task] = {}  # by descriptor and event
        self._poll = select.poll()
        self._timers: Timers[Task] = Timers()

    def spawn(self, code: Code[None]) -> Task:
        task = Task(code)
        self._ready.append((task, None))
        return task

    def wake(self, task: Task, came: bool) -> None:
        if task.wait is None:
            return
        if task.wait.fd >= 0:
            del self._waiting[task.wait.fd, task.wait.event]
            self._register(task.wait.fd)
        self._timers.cancel(task.timer)
        task.wait = None
        self._ready.append((task, came))

    def cancel(self, task: Task) -> None:
        self.wake(task, came=False)
        task.code.close()

    def run(self) -> None:
        """One round: all who can, run on to their next yield; then whoever comes first is waited for."""
        # fig: one round
        for _ in range(len(self._ready)):
            self.current, came = self._ready.popleft()
            with suppress(StopIteration):
                self._park(self.current, self.current.code.send(came))
        for fd, events in self._poll.poll(0 if self._ready else self._timers.seconds_left(WAKES) * 1000):
            for event in (select.POLLIN, select.POLLOUT):
                if events & (event | ENDS) and (task := self._waiting.get((fd, event))):
                    self.wake(task, came=True)
        for task in self._timers.due():
            self.wake(task, came=False)
        # end fig

    def _park(self, task: Task, wait: Wait) -> None:
        task.wait = wait
        if wait.fd >= 0:
            self._waiting[wait.fd, wait.event] = task
            self._register(wait.fd)
        if wait.seconds is not None:
            task.timer = self._timers.set(wait.seconds, task)

    def _register(self, fd: int) -> None:
        events = sum(event for event in (select.POLLIN, select.POLLOUT) if (fd, event) in self._waiting)
        if events:
            self._poll.register(fd, events)
        else:
            self._poll.unregister(fd)


def serve(server: Server) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: trampoline")
    trampoline = Trampoline()
    clients = Clients(server, trampoline, slot)
    trampoline.spawn(clients.hear_signals())
    for listener in server.listeners:
        trampoline.spawn(accept(clients, listener))
    while clients.number or not server.stop.requested:
        clients.go_on()


def accept(clients: Clients, listener: socket.socket) -> Code[None]:
    listener.setblocking(False)
    # fig: accept loop
    while not clients.server.stop.requested:
        yield read_wait(listener)
        try:
            with suppress(BlockingIOError):  # nobody is left, or the client has left (UNP 16.6)
                for _ in range(ACCEPTS_AT_ONCE):
                    clients.admit(clients.server.accept.take(listener))
        except OSError as error:
            if not clients.server.stop.requested:
                clients.server.accept.survive(error)
            if error.errno in OUT_OF_RESOURCES:
                yield pause(RESOURCE_PAUSE)
    # end fig
