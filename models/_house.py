"""What `asyncio`, `uvloop` and `tornado` have in common: a server on somebody else's loop.

    run()     open --> [ accepting; signals, a sign of life each second ] --> shut --> the last has left
    admit()   a client, which is a task, from accept to its end

Rules: whoever accepts asks `server.stop.requested` before each client, and stops accepting in `shut`.
What is accepted on are duplicates of the listeners: those themselves turn into dead sockets at SIGTERM
(_stop.py), and a poller could not take out any more what it had been told to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import NamedTuple, Protocol, TypeVar

from models._scoreboard import ACCEPT, RELAY, Slot
from models._server import WAKES, Server
from tunnel.address import Address
from tunnel.dial import Dial, SockAddr
from tunnel.drain import SCRATCH, first_to_go, host_of
from tunnel.flow import EMPTY, Flow

T = TypeVar("T")


class Left(Exception):
    """The client goes before it has said where to. Nothing is wrong with that."""


class Discarded(Flow):
    """The flow of a client whose handshake has failed: whatever comes is thrown away."""

    __slots__ = ()
    _scratch = memoryview(bytearray(SCRATCH))  # for all of them, since nobody looks at it

    def get_buffer(self) -> memoryview:
        return self._scratch

    def buffer_updated(self, n: int) -> memoryview:  # noqa: ARG002
        return EMPTY

    def eof(self) -> memoryview:
        return EMPTY

    def release(self) -> None:
        """It keeps its buffer."""


class Drained(NamedTuple):
    """A client whose handshake has failed."""

    deadline: float  # monotonic seconds
    source: str  # the host that it comes from
    fd: int


class Client(Protocol):
    """What a model serves. `run` raises nothing but our own mistakes."""

    def run(self) -> Coroutine[None, None, None]:
        """From accept to the end."""

    def on_stop(self) -> None:
        """The server ends: a client that has not said where to go has nothing to lose."""


class House:
    """The server, and the clients in it."""

    def __init__(self, server: Server, slot: Slot) -> None:
        self.server = server
        self.slot = slot
        self.loop = asyncio.get_running_loop()
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._drained: dict[Client, Drained] = {}
        server.stop.spared = lambda: [drained.fd for drained in self._drained.values()]
        self._changed = asyncio.Event()

    async def run(self, open_: Callable[[], None], shut: Callable[[], None]) -> None:
        """Serves until told to stop, and then until the last client has left."""
        stop, accepting = self.server.stop, True
        self.loop.add_reader(stop.fileno(), self._on_signal)
        open_()
        self.slot.enter(ACCEPT)
        # fig: until the last has left
        while self._clients or not stop.asked():
            self.slot.beat()
            if stop.requested and accepting:
                accepting = False
                shut()
                for client in self._clients.values() if stop.impatient else ():
                    client.on_stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAKES):
                    await self._changed.wait()
            self._changed.clear()
        # end fig
        if accepting:
            shut()

    def admit(self, client: Client) -> None:
        """One more, just accepted."""
        self.slot.accepted(RELAY)
        task = self.loop.create_task(client.run())
        self._clients[task] = client
        task.add_done_callback(self._leave)
        accept = self.server.accept
        accept.taken()
        if accept.left == 0:
            self.server.stop.retire()
            self._changed.set()

    @contextlib.contextmanager
    def draining(self, client: Client, sock: socket.socket, deadline: float) -> Iterator[float]:
        """While a client drains its own socket; until when (monotonic seconds).

        tunnel/drain.py could have the socket of a transport only by a duplicate, and whether there is a
        descriptor for one would tell what has failed. Its cap holds here, too.
        """
        drain = self.server.drain
        self.slot.drained()
        if len(self._drained) >= drain.capacity:
            first = first_to_go(self._drained)
            del self._drained[first]
            first.on_stop()
        self._drained[client] = Drained(drain.until(deadline), host_of(sock), sock.fileno())
        try:
            yield self._drained[client].deadline
        finally:
            self._drained.pop(client, None)

    def _leave(self, task: asyncio.Task[None]) -> None:
        del self._clients[task]
        if not self._clients:
            self.slot.enter(ACCEPT)
            self._changed.set()
        if not task.cancelled():
            task.result()  # our own mistakes are shown

    def _on_signal(self) -> None:
        self.server.stop.clear_wakeup()
        self._changed.set()


async def in_time(awaitable: Awaitable[T], seconds: float) -> T:
    """The result, or a TimeoutError in the words of connect(2): asyncio's own has none."""
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    finally:
        del awaitable  # a task has its exception, whose traceback has this frame: a cycle


async def addresses_of(dial: Dial, target: Address) -> list[SockAddr]:
    """What to try, in order: names in a thread of the loop's executor, since getaddrinfo blocks.

    Raises OSError, also for want of a thread, and TimeoutError after the time that a connection may take.
    """
    if dial.literal(target):
        return dial.addresses(target)
    try:
        found = asyncio.get_running_loop().run_in_executor(None, dial.addresses, target)
    except RuntimeError as error:
        raise OSError(None, str(error)) from None
    return await in_time(found, dial.timeout)
