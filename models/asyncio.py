"""Asyncio: BufferedProtocol on the standard library's loop.

    +------------------------------- the only thread -------------------------------+
    |   selectors: epoll on Linux                                                   |
    |        |                                                                      |
    |        +--> listener readable: accept --> Client.run(), a coroutine           |
    |        |                                                                      |
    |        +--> accepted readable: get_buffer --recv_into--> buffer_updated       |
    |        |                                                      |               |
    |        `--> dialled writable again: resume_writing <--- transport.write       |
    +-------------------------------------------------------------------------------+
              names: getaddrinfo in the loop's executor, a few threads

Python's own loop, after UNP 6.8, with transports that own the sockets and call back. The body, which
`uvloop` shares, is `_protocol.py`.

Differs from `select`: the loop is the library's. It reads into our buffer and writes from it by
itself; all that we say is when to stop reading.
Good when: the rest of the program is asyncio already.
Breaks when: every microsecond counts, since each event passes through a Handle, a Context and a
transport first. TCP_NODELAY is always on. At the end it waits for names that are being looked up.
"""

from __future__ import annotations

import asyncio

from models._protocol import run
from models._server import Server


def serve(server: Server) -> None:
    # fig: loop
    with asyncio.Runner() as runner:
        runner.run(run(server, "tunnel: asyncio"))
    # end fig
