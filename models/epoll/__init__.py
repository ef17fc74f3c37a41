"""Epoll: libuv's loop, rebuilt step by step and by its own names.

    +------------------------------- the only thread --------------------------------+
    |  run:  pending --> io_poll -------------------------------------> timers       |
    |           ^         | watcher_queue: epoll_ctl                      |          |
    |           |         | epoll_wait, then each watcher's callback:     |          |
    |           |         |    listener   server_io --> connection_cb, accept        |
    |           |         |    stream     stream_io --> read, write, drain, connect  |
    |           `-----------------------------------------------------------'        |
    +--------------------------------------------------------------------------------+
              names: a few helper threads, which wake the loop through an eventfd

    here         libuv, src/unix             what is in it
    core.py      core.c, timer.c             the loop, io_start and io_stop, the phases
    linux.py     linux.c                     epoll itself: io_poll
    stream.py    stream.c                    read, write queue, drain, deferred shutdown
    tcp.py       tcp.c, stream.c             listen, server_io, accept, the EMFILE trick, connect
    server.py    -                           the tunnel's server on top of these
    request.py   -                           a client from accept until it has said where to go
    dialling.py  -                           until it is connected there
    relay.py     -                           the two directions, each of them in direction.py
    (../_resolver.py is threadpool.c and async.c; ../_deadlines.py stands for the heap of timer.c)

libuv 1.x, https://github.com/libuv/libuv; epoll(7).

Differs from `poll`: the kernel keeps the set of descriptors and hands out only those that are ready, so
waiting costs by events and not by clients. And it is told of changes right before it is waited for,
all at once: what was started and stopped again in one round costs no system call. Left out, since
a tunnel has no use for it: idle, prepare and check callbacks, and the closing phase (close callbacks;
Python frees by reference count).
Good when: connections are many and most of them idle.
Breaks when: one callback takes long, since everybody waits for it. And the EMFILE trick may fail while a
helper thread looks up a name: the descriptor that it sets free may be taken by that thread.
"""

from __future__ import annotations

from models._server import Server
from models.epoll.server import EpollServer


def serve(server: Server) -> None:
    slot = server.scoreboard.take()
    slot.own("tunnel: epoll")
    # fig: a loop is built, then run
    EpollServer(server, slot).run()
    # end fig
