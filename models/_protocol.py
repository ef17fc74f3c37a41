"""The body of `asyncio` and `uvloop`: a client is two protocols, and one coroutine for its whole life.

    Client.run    request --> resolve --> dial ------> relay, until both directions have ended
                     |                      |
    accepted      Side <--> transport       |          get_buffer, buffer_updated --write--> the other
    dialled                               Side <--> transport

A Side is to its transport what a Flow is to us: it is asked for a buffer, and told how much was read
into it. What comes out is written to the other side's transport.

Rules: while a write is not through, the side that it came from is not read. Transports of newer
asyncios, and uvloop's, do not copy what they are given: they send from our buffer, later. Those of
Python 3.11 copy, and would copy without end. With `set_write_buffer_limits(0)` all of them call
`pause_writing` as soon as anything is left over, and `resume_writing` once nothing is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from models._direction import reset_on_close
from models._house import Discarded, House, Left, addresses_of, in_time
from models._server import ACCEPTS_AT_ONCE, OUT_OF_RESOURCES, RESOURCE_PAUSE, Server, silent_for
from tunnel.address import Address
from tunnel.connection import in_full
from tunnel.errors import ProtocolError
from tunnel.flow import EMPTY, Flow
from tunnel.log import describe, log, peer_name


async def connected(sock: socket.socket) -> None:
    """Waits for a connection in progress (UNP 16.3). Raises OSError, in connect's own words, where
    `loop.sock_connect` has words of its own."""
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(sock, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(sock)
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))


class Side(asyncio.BufferedProtocol):
    """One socket of a client: what is read from it goes through `flow` to `peer`."""

    def __init__(self, client: Client, flow: Flow, count: Callable[[int], None]) -> None:
        self.client = client
        self.flow = flow
        self.count = count
        self.peer = self  # an opening answers its own side
        self.sock: socket.socket | None = None
        self.transport: asyncio.Transport | None = None
        self.early = EMPTY  # to be written once there is a transport
        self.full = True  # the last write is not through, or there is nothing yet to write to
        self.ended = False  # the FIN has come
        self.open = True  # the direction that begins here
        self.failure: Exception | None = None  # why nothing can be written here any more
        self.lost = False  # its transport has given up, and what has come should still be read
        self.moves = 0  # what the idle time looks at

    # fig: protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)
        self.full = False
        self.client.on_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self.flow.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.count(nbytes)
        self.forward(partial(self.flow.buffer_updated, nbytes))

    def eof_received(self) -> bool:
        self.ended = True
        self.forward(self.flow.eof)
        return True  # the transport stays: the other direction goes on

    def forward(self, step: Callable[[], memoryview]) -> None:
        """Writes what the step returns to the other side; reads on when it is through."""
        self.moves += 1
        try:
            self.peer.write(step())
        except (ProtocolError, OSError) as error:  # OSError: our salt cannot be remembered
            self.pause()  # nothing may follow what was lost
            self.client.settle(error)
            return
        if self.peer.full:
            self.pause()
        else:
            self.client.on_through(self)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.moves += 1
        self.client.on_through(self.peer)

    # end fig

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.client.on_lost(self, exc)

    def write(self, data: memoryview | bytes) -> None:
        if self.failure is not None:
            return
        if self.transport is None:
            self.early = memoryview(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def pause(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.ended:
            self.transport.resume_reading()

    def write_eof(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            try:
                self.transport.write_eof()
            except OSError as error:  # it has gone by itself (ENOTCONN)
                self.failure = error

    def unsent(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def close(self) -> None:
        """With FIN; with RST if something is left that nobody will wait for."""
        if self.transport is None:
            if self.sock is not None:
                self.sock.close()
        elif self.full:
            self.reset()
        else:
            self.transport.close()

    def reset(self) -> None:
        """Closes with RST, so that what was cut off cannot be taken for a whole (UNP 7.5)."""
        if self.sock is not None and self.sock.fileno() >= 0:
            reset_on_close(self.sock)
            if self.transport is not None:
                self.transport.abort()
            else:
                self.sock.close()


class Client:
    """One client, from accept to the end of both directions."""

    def __init__(self, house: House, sock: socket.socket) -> None:
        self.house = house
        self.service = service = house.server.service
        self.session = session = service.new_session()
        self.deadline = time.monotonic() + service.timeouts.handshake
        self.accepted = Side(self, session.opening, house.slot.count_up)
        self.dialled = Side(self, session.down, house.slot.count_down)
        self.accepted.sock = sock
        self.place = house.server.limits.claim(sock.fileno())
        self.connected = False
        self.turn: asyncio.Future[Exception | None] = (
            house.loop.create_future()
        )  # the end of what run() waits for, and why it ended
        self.greeting: asyncio.TimerHandle | None = None
        self.silence: asyncio.TimerHandle | None = None  # the look whether anything has moved
        self.reopening: asyncio.Task[None] | None = None
        if session.target is not None:
            self._join()

    async def run(self) -> None:
        # fig: a client
        try:
            target = await self._request()
            if target is not None and await self._dial(target):
                await self._relay()
        except OSError as error:
            self._cut(error)
        finally:
            self._close()
        # end fig

    # --- request ---

    async def _request(self) -> Address | None:
        """Where the client wants to go; None if it has left, or was drained."""
        session, accepted, handshake = self.session, self.accepted, self.service.timeouts.handshake
        assert accepted.sock is not None
        known = session.target  # now: uvloop reads before it returns
        await self.house.loop.connect_accepted_socket(lambda: accepted, accepted.sock)
        if known is not None:
            return known
        if session.dials:
            late = TimeoutError(f"no whole request within {handshake:g} s")
            self.silence = self.house.loop.call_at(self.deadline, self.settle, late)
        else:
            self._watch(both=True)
        error = await self.turn
        if self.silence is not None:
            self.silence.cancel()  # or it would end what comes next
            self.silence = None
        if isinstance(error, TimeoutError) and error.errno is None:  # our own, and not the kernel's
            log.info(describe(error), peer_name(accepted.sock))
        elif isinstance(error, ProtocolError):
            log.warning(f"handshake failed: {error}", peer_name(accepted.sock))
            accepted.write(session.answer(error))
            await self._drain()
        elif isinstance(error, OSError):
            log.debug(f"left during the handshake: {describe(error)}", peer_name(accepted.sock))
        self.turn = self.house.loop.create_future()
        return session.target if error is None else None

    async def _drain(self) -> None:
        """What tunnel/drain.py does, here (see House.draining)."""
        accepted, loop = self.accepted, self.house.loop
        assert accepted.sock is not None
        with self.house.draining(self, accepted.sock, self.deadline) as until:
            if accepted.ended or self.house.server.stop.impatient:
                return
            accepted.flow, self.turn = Discarded(), loop.create_future()
            self.silence = loop.call_at(until, self.settle, None)
            accepted.resume()
            await self.turn

    # --- resolve, dial ---

    async def _dial(self, target: Address) -> bool:
        """True once the dialled side has its transport; False if the client was told that it cannot be."""
        dial, dialled, loop = self.service.dial, self.dialled, self.house.loop
        failure: OSError | None = None
        try:
            for address in await addresses_of(dial, target):
                try:
                    dialled.sock = sock = dial.start(address, socket.socket)
                    await in_time(connected(sock), dial.timeout)
                except OSError as error:
                    failure = error
                    dialled.close()
                else:
                    await loop.create_connection(lambda: dialled, sock=sock)
                    return True
        except OSError as error:
            failure = error
        assert failure is not None
        log.info(f"cannot connect to {target}: {describe(failure)}", self.name())
        self.accepted.write(self.session.answer(failure))
        return False

    # --- relay ---

    def _join(self) -> None:
        """From now on, what one side reads goes to the other."""
        self.accepted.flow = self.session.up
        self.accepted.peer, self.dialled.peer = self.dialled, self.accepted

    def on_made(self, side: Side) -> None:
        """A side has its transport. For the dialled one: the first words."""
        if self.connected or side is self.accepted:
            return
        self.connected = True
        self._join()
        accepted, session = self.accepted, self.session
        accepted.write(session.answer(None))
        if side.early or accepted.ended:  # read before there was anybody to write it to
            accepted.forward(lambda: side.early)
        elif session.patience:
            self.greeting = self.house.loop.call_later(session.patience, self._greet)
            accepted.resume()
        else:
            self._greet()

    def _greet(self) -> None:
        """The header goes alone, unless it went with the first payload; then this is nothing.

        Nor does anything follow a FIN: it took the header with it."""
        if self.accepted.open and not self.accepted.ended:
            self.accepted.forward(lambda: self.session.up.buffer_updated(0))

    async def _relay(self) -> None:
        self._watch(both=True)
        error = await self.turn
        if self.reopening is not None:
            await self.reopening  # on its way to a transport, a socket belongs to the loop
        if error:
            self._cut(error)

    def _watch(self, both: bool, before: object = None) -> None:
        """Ends the wait if nothing moves for as long as it may not: less, once one direction has ended.

        A timer, and a future that run() awaits: asyncio.wait would hold 2 KB for each connection."""
        now, longest = self._progress(), self.service.timeouts.silence(both)
        if self.silence is not None:
            self.silence.cancel()
        if now == before:
            self.settle(silent_for(longest, both))
        else:
            self.silence = self.house.loop.call_later(longest, self._watch, both, now)

    def _progress(self) -> tuple[int, ...]:
        accepted, dialled = self.accepted, self.dialled
        return accepted.moves, accepted.unsent(), dialled.moves, dialled.unsent()

    # --- what the sides tell ---

    def settle(self, error: Exception | None) -> None:
        """What run() waits for has come."""
        if not self.turn.done():
            self.turn.set_result(error)

    def on_through(self, side: Side) -> None:
        """All that was read from this side has been written, and more may be."""
        side.flow.release()
        if side.ended:
            self._on_end(side)
        elif not self.connected and self.session.target is not None:
            side.pause()
            self.settle(None)
        elif side.lost:
            self._reopen(side)
        else:
            side.resume()

    def _on_end(self, side: Side) -> None:
        """A direction has come to its end: passes the FIN on, unless closing does that."""
        side.open = False
        if not self.connected:
            self.settle(Left())
        elif side.peer.open:
            side.peer.write_eof()
            self._watch(both=False)
        else:
            self.settle(self.accepted.failure or self.dialled.failure)

    def on_lost(self, side: Side, error: Exception) -> None:
        """A transport has given its socket up. If it was a write that failed, then what the peer had sent
        before it went may still be there to be read, if there is anybody to write it to."""
        gone = side.failure or side.peer.failure
        if gone or side.ended or not self.connected or self.turn.done():
            self.settle(error)
            return
        assert side.sock is not None
        try:
            side.sock = side.sock.dup()
        except OSError as failure:
            self.settle(failure)
            return
        side.failure, side.transport, side.lost = error, None, True
        side.peer.open = False
        side.peer.pause()
        self._watch(both=False)
        if not side.peer.full:
            self._reopen(side)

    def _reopen(self, side: Side) -> None:
        """Once. Not before the last view has been written."""
        side.lost = False
        self.reopening = self.house.loop.create_task(self._read_on(side))

    async def _read_on(self, side: Side) -> None:
        """Another transport, to read what is left."""
        try:
            await self.house.loop.create_connection(lambda: side, sock=side.sock)
        except OSError as error:
            self.settle(error)

    # --- the end ---

    def on_stop(self) -> None:
        if self.session.target is None:
            self.settle(Left())

    def _cut(self, error: Exception) -> None:
        """Ends both connections so that neither side can take what it got for a whole."""
        log.warning(f"connection to {self.session.target} cut: {describe(error)}", self.name())
        self.accepted.reset()
        self.dialled.reset()

    def _close(self) -> None:
        self.place.leave()
        for timer in (self.greeting, self.silence):
            if timer is not None:
                timer.cancel()
        for side, flow in ((self.accepted, self.session.down), (self.dialled, self.session.up)):
            if not side.full or side.transport is None:  # else the transport may still look at its view
                flow.release()
            side.close()

    def name(self) -> str:
        return peer_name(self.accepted.sock)


class Door:
    """The listeners: every client that comes is admitted to the house.

    Not `create_server`: uvloop's, where descriptors run out, accepts the clients that wait only to close
    them, and asyncio's can find its listener closed when it comes back to it.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.listeners = [listener.dup() for listener in house.server.listeners]

    def open(self) -> None:
        for listener in self.listeners:
            listener.setblocking(False)
            self._watch(listener)

    def shut(self) -> None:
        for listener in self.listeners:
            self.house.loop.remove_reader(listener)
            listener.close()

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self.house.loop.add_reader(listener, self._accept, listener)

    # fig: accept
    def _accept(self, listener: socket.socket) -> None:
        house = self.house
        for _ in range(ACCEPTS_AT_ONCE):
            if house.server.stop.requested:
                return
            try:
                sock = in_full(house.server.accept.take(listener))
            except BlockingIOError:
                return
            except OSError as error:
                house.server.accept.survive(error)
                if error.errno in OUT_OF_RESOURCES:
                    house.loop.remove_reader(listener)
                    house.loop.call_later(RESOURCE_PAUSE, self._watch, listener)
                    return
            else:
                sock.setblocking(False)
                house.admit(Client(house, sock))

    # end fig


async def run(server: Server, title: str) -> None:
    """Serves until told to stop, on the loop that runs this."""
    slot = server.scoreboard.take()
    slot.own(title)
    house = House(server, slot)
    door = Door(house)
    await house.run(door.open, door.shut)
