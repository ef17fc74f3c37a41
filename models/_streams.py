"""The body of `tornado`: a client is one coroutine until it is connected, and then two.

    Client.run    request --> resolve --> dial --+--> up:   read_into, flow, write    both, until each
                                                 `--> down: read_into, flow, write    has come to its end

Rules: whoever writes awaits the write, since an IOStream sends from our buffer until it is through. A
read in progress is never abandoned: IOStream has one at a time, and goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from tornado.iostream import IOStream, StreamClosedError

from models._direction import reset_on_close
from models._house import Discarded, House, Left, addresses_of, in_time
from models._server import silent_for
from tunnel.errors import ProtocolError
from tunnel.flow import Flow
from tunnel.log import describe, log, peer_name

T = TypeVar("T")


class Stream(IOStream):
    """An IOStream that outlives a FIN, and a peer that takes no more.

    IOStream closes the socket at either, and throws away what was still to be written or read. Its API
    has one place to tell it otherwise: the two methods that touch the descriptor. So a FIN is read as
    one byte more than has come; `unread`, which counts those that have, tells it from data. A second
    such byte, which nobody asks for, stays in IOStream's buffer, and stops it from looking for more.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.unread = 0  # bytes that have come and were not returned yet
        self.failure: OSError | None = None  # why nothing can be written any more
        self.moves = 0  # what the idle time looks at

    # fig: descriptor
    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        n = super().read_from_fd(buf)
        if n is None:
            return None
        self.moves += 1
        self.unread += n
        return n or 1

    def write_to_fd(self, data: memoryview) -> int:
        try:
            sent = super().write_to_fd(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            self.failure = error
            return len(data)
        self.moves += 1
        return sent

    # end fig

    async def receive(self, flow: Flow) -> int:
        """Bytes that were put into the flow's buffer; 0 for a FIN."""
        reading = asyncio.ensure_future(self.read_into(cast("bytearray", flow.get_buffer()), partial=True))
        if reading.done():
            await asyncio.sleep(0)  # they were there already; the others have their turn
        try:
            return self._taken(await reading)
        except StreamClosedError as error:
            raise error.real_error or error from None

    async def first(self, most: int) -> bytes:
        """The same, into no flow's buffer: the flow may have to say its header meanwhile."""
        try:
            content = await self.read_bytes(most, partial=True)
        except StreamClosedError as error:
            raise error.real_error or error from None
        return content[: self._taken(len(content))]

    def _taken(self, n: int) -> int:
        n = min(n, self.unread)
        self.unread -= n
        return n

    async def send(self, data: memoryview | bytes) -> None:
        """Returns once all of it is sent, or `failure` says why it cannot be."""
        if not data:
            return
        try:
            await self.write(data)
        except StreamClosedError as error:
            raise error.real_error or error from None

    def finish(self) -> None:
        if self.closed():  # by itself, after an error: then there is no socket any more
            self.failure = self.failure or StreamClosedError(self.error)
            return
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # it has gone by itself (ENOTCONN)
            self.failure = error

    def reset(self) -> None:
        """Closes with RST, so that what was cut off cannot be taken for a whole (UNP 7.5)."""
        if not self.closed():
            reset_on_close(self.socket)
            self.close()


class Client:
    """One client, from accept to the end of both directions."""

    def __init__(self, house: House, sock: socket.socket) -> None:
        self.house = house
        self.service = house.server.service
        self.session = self.service.new_session()
        self.deadline = time.monotonic() + self.service.timeouts.handshake
        self.place = house.server.limits.claim(sock.fileno())
        self.accepted = Stream(sock)
        self.dialled: Stream | None = None
        self.tasks: list[asyncio.Task[Any]] = []

    async def run(self) -> None:
        # fig: a client
        try:
            await self._request()
            self.dialled = await self._dial()
            await self._relay(self.accepted, self.dialled)
        except Left:
            pass
        except (ProtocolError, OSError) as error:
            log.warning(f"connection to {self.session.target} cut: {describe(error)}", self.name())
            for stream in self._streams():
                stream.reset()
        finally:
            self._close()
        # end fig

    def _streams(self) -> list[Stream]:
        return [self.accepted, self.dialled] if self.dialled is not None else [self.accepted]

    # --- request ---

    async def _request(self) -> None:
        """Until the target is known. Raises Left if it never will be."""
        session, accepted, handshake = self.session, self.accepted, self.service.timeouts.handshake
        if self.house.server.stop.impatient:  # on_stop came before there was a task to cancel
            raise Left
        try:
            if session.dials:
                await in_time(self._work(self._converse()), handshake)
            else:
                await self._while_moving(self._work(self._converse()))
        except TimeoutError:
            log.info(f"no whole request within {handshake:g} s", self.name())
        except ProtocolError as error:
            log.warning(f"handshake failed: {error}", self.name())
            await accepted.send(session.answer(error))
            if not accepted.closed() and not self.house.server.stop.impatient:  # closed: by an RST
                await self._drain()
        except OSError as error:
            log.debug(f"left during the handshake: {describe(error)}", self.name())
        except asyncio.CancelledError:  # on_stop
            pass
        else:
            return
        raise Left

    async def _drain(self) -> None:
        """What tunnel/drain.py does, here (see House.draining)."""
        with (
            self.house.draining(self, self.accepted.socket, self.deadline) as until,
            contextlib.suppress(OSError, asyncio.CancelledError),  # at the deadline, by an RST, by on_stop
        ):
            await in_time(self._work(self._discard()), until - time.monotonic())

    async def _discard(self) -> None:
        discarded = Discarded()
        while await self.accepted.receive(discarded):
            pass

    async def _converse(self) -> None:
        opening, accepted = self.session.opening, self.accepted
        while self.session.target is None:
            n = await accepted.receive(opening)
            self.house.slot.count_up(n)
            await accepted.send(opening.buffer_updated(n) if n else opening.eof())
            opening.release()
            if not n:
                raise Left

    def on_stop(self) -> None:
        if self.session.target is None:
            for task in self.tasks:
                task.cancel()

    # --- resolve, dial ---

    async def _dial(self) -> Stream:
        """The dialled side. Raises Left when the client was told that there is none."""
        target, dial = self.session.target, self.service.dial
        assert target is not None
        failure: BaseException | None = None
        try:
            for address in await addresses_of(dial, target):
                try:
                    stream = Stream(dial.start(address, socket.socket))
                except OSError as error:
                    failure = error
                    continue
                try:
                    return await in_time(stream.connect(address), dial.timeout)
                except OSError as error:
                    failure = stream.error or error
                    stream.close()
        except OSError as error:
            failure = error
        assert isinstance(failure, OSError)
        log.info(f"cannot connect to {target}: {describe(failure)}", self.name())
        await self.accepted.send(self.session.answer(failure))
        raise Left

    # --- relay ---

    async def _relay(self, accepted: Stream, dialled: Stream) -> None:
        slot, session = self.house.slot, self.session
        await self._while_moving(
            self._work(self._up(accepted, dialled)),
            self._work(self._copy(session.down, dialled, accepted, slot.count_down)),
        )
        if failure := accepted.failure or dialled.failure:
            raise failure

    async def _up(self, accepted: Stream, dialled: Stream) -> None:
        """The header waits a moment for the first payload, to share its segment."""
        session, count = self.session, self.house.slot.count_up
        await accepted.send(session.answer(None))
        if session.patience:
            reading = self._work(accepted.first(len(session.up.get_buffer())))
            await asyncio.wait([reading], timeout=session.patience)
            if not reading.done():
                await dialled.send(session.up.buffer_updated(0))
            content = await reading
            count(len(content))
            session.up.get_buffer()[: len(content)] = content
            await dialled.send(session.up.buffer_updated(len(content)))
        else:
            await dialled.send(session.up.buffer_updated(0))
        session.up.release()
        await self._copy(session.up, accepted, dialled, count)

    async def _copy(
        self, flow: Flow, source: Stream, destination: Stream, count: Callable[[int], None]
    ) -> None:
        # fig: copy
        while n := await source.receive(flow):
            count(n)
            await destination.send(flow.buffer_updated(n))
            flow.release()
            if destination.failure:
                return  # what it sent before it went is still read, by the other direction
        await destination.send(flow.eof())
        destination.finish()
        # end fig

    async def _while_moving(self, *tasks: asyncio.Task[None]) -> None:
        """Until all have ended. Raises what one of them raises, or TimeoutError for the idle time."""
        timeouts, pending = self.service.timeouts, set(tasks)
        while pending:
            before = [stream.moves for stream in self._streams()]
            both = len(pending) == len(tasks)
            longest = timeouts.silence(both)
            ended, pending = await asyncio.wait(pending, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
            if not ended and before == [stream.moves for stream in self._streams()]:
                raise silent_for(longest, both)

    # --- the end ---

    def _work(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A part of this client that ends with it."""
        task = self.house.loop.create_task(work)
        self.tasks.append(task)
        return task

    def _close(self) -> None:
        self.place.leave()
        for stream in self._streams():
            stream.close()
        for task in self.tasks:
            if not task.cancel() and not task.cancelled():
                task.exception()  # the first one was told of
        self.tasks.clear()  # an exception's frames have this client, which has its task
        self.session.up.release()
        self.session.down.release()

    def name(self) -> str:
        return "-" if self.accepted.closed() else peer_name(self.accepted.socket)
