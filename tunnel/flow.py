"""A Flow: one direction of a connection, as every model sees it.

              get_buffer()            buffer_updated(n)
    source --recv_into--> [ in ] --seal or open--> [ out ] --send--> destination
                             `- lent while busy, given back by release() -'

Rules: the core, which is this file and what it is made of and serves (errors, keys, aead, buffers, address,
socks, session, judge), does no I/O. It imports no socket, no clock and no thread, so any server model can
drive it.
"""

from __future__ import annotations

from tunnel.address import Address
from tunnel.buffers import SIZES, give, next_class, take

EMPTY = memoryview(b"")


class Flow:
    """One direction of a connection: bytes in, bytes out, one owner at a time.

        dst.sendall(flow.buffer_updated(src.recv_into(flow.get_buffer())))

    The shape of `asyncio.BufferedProtocol`. Ownership is backpressure: a view that
    `buffer_updated` or `eof` returned is valid until this flow's next `get_buffer` or `release`, so
    nobody reads again before the far side has taken all of it.
    """

    __slots__ = ("_filled", "_in", "_in_class", "_out", "_out_class", "_rest")

    def __init__(self) -> None:
        self._in: memoryview | None = None  # lent while this flow is busy
        self._out: memoryview | None = None
        self._in_class = self._out_class = 0  # their size classes
        self._filled = 0  # bytes at the front of _in that wait for the rest of their record
        self._rest = b""  # the same bytes while _in is not lent

    def get_buffer(self) -> memoryview:
        """Where the next bytes go: `recv_into` this. Never empty."""
        buffer = self._in
        if buffer is None:
            self._in = buffer = take(self._in_class)
            if self._rest:
                buffer[: self._filled] = self._rest
                self._rest = b""
        return buffer[self._filled : SIZES[self._in_class]]

    def buffer_updated(self, n: int) -> memoryview:
        """Takes the `n` bytes that were put into the buffer; returns what to send on.

        Empty: more is needed. With n = 0 it returns what is ready without reading, if anything is.
        Raises ProtocolError.
        """
        raise NotImplementedError

    def eof(self) -> memoryview:
        """The source has ended: returns what to send before the FIN. Raises Truncated."""
        return EMPTY

    def release(self) -> None:
        """All that was returned has been sent: the buffers go back until the next byte comes."""
        if self._in is not None:
            if self._filled:
                self._rest = bytes(self._in[: self._filled])
            give(self._in_class, self._in)
            self._in = None
        if self._out is not None:
            give(self._out_class, self._out)
            self._out = None

    def _output(self) -> memoryview:
        """An output buffer of the input's class: both codecs' output fits, thanks to ROOM."""
        if self._out is None or self._out_class != self._in_class:
            if self._out is not None:
                give(self._out_class, self._out)
            self._out_class = self._in_class
            self._out = take(self._in_class)
        return self._out

    def _keep(self, buffer: memoryview, start: int, end: int, read: int) -> None:
        """After a read: moves what was not used to the front, in a buffer of the next size."""
        size_class = next_class(self._in_class, read, end)
        left = end - start
        if size_class != self._in_class and left < SIZES[size_class]:
            bigger = take(size_class)
            bigger[:left] = buffer[start:end]
            give(self._in_class, buffer)
            self._in, self._in_class = bigger, size_class
        elif start and left:
            buffer[:left] = buffer[start:end]
        self._filled = left


class Opening(Flow):
    """The flow that a connection begins with; what it returns goes back to the peer it came from."""

    __slots__ = ("target",)

    def __init__(self, target: Address | None = None) -> None:
        super().__init__()
        self.target = target  # where the connection wants to go, once that is known
