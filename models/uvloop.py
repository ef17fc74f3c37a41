"""Uvloop: the same two protocols on the real libuv.

    +------------------------------- the only thread -------------------------------+
    |   uv_run                                                                      |
    |        |                                                                      |
    |        +--> uv_poll_t, the listener: accept --> Client.run(), a coroutine     |
    |        |                                                                      |
    |        +--> uv_tcp_t, accepted: get_buffer --uv__read--> buffer_updated       |
    |        |                                                      |               |
    |        `--> uv_tcp_t, dialled: resume_writing <--- write, uv_write            |
    +-------------------------------------------------------------------------------+
              names: getaddrinfo in the loop's executor, a few threads

libuv's loop behind asyncio's interface, after UNP: what `epoll` rebuilds in Python is C here. The body
is `_protocol.py`, the same as for `asyncio`.

Differs from `asyncio`: one line. And in what that line buys: transports and handles in Cython over
libuv. A read goes on until a short one, and what is written stays in our buffer until it was sent.
Good when: the same code should cost less.
Breaks when: its exactness is taken for granted. A transport reads at once, whatever `connection_made`
said; and its own server, out of descriptors, accepts the clients that wait only to close them.
"""

from __future__ import annotations

import asyncio

import uvloop

from models._protocol import run
from models._server import Server


def serve(server: Server) -> None:
    # fig: loop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(server, "tunnel: uvloop"))
    # end fig
