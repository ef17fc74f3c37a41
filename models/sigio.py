"""Sigio: the kernel says by a signal that somebody has connected.

                               +------------------ the only process ------------------+
    client ==> [ listener ] -. |                                                      |
                   |         `-SIGIO-->  main: sigtimedwait                           |
                   `------------------>  accept ... until EAGAIN --+--> thread 1      |
    SIGTERM --> handler --> [ stop ] --SIGIO-->  (main)            `--> thread N ...  |
                               +------------------------------------------------------+

UNP 25: F_SETOWN says whom to tell, O_ASYNC says to tell. Main blocks SIGIO and takes it with
sigtimedwait, so there is no handler, and nothing that a handler could interrupt. Several connections
may share one signal: it is a bit, not a queue. So main accepts until there is nobody left, and what
comes after that sets the bit again; none is forgotten.

A real-time signal (F_SETSIG) would be queued once for each connection. Here that is a loss: the first
one leads to all of them, the others wake main for nothing, and when the queue is full
(RLIMIT_SIGPENDING) the kernel sends plain SIGIO after all, and a server has to do what is done here.

Clients themselves are served by other means, a thread each. On a connected TCP socket SIGIO comes for a
connection made, data, FIN, room to send, an error, and does not say which; whoever gets it must
ask poll, and could have asked poll to begin with (UNP 25.2). On a listener it means one thing.

Differs from `thread`: main is not in accept but waits for signals, so that it could wait for others, of
timers or children, by the same call.
Good when: connections are rare, and a program has something else to do until one comes.
Breaks when: accept fails for want of descriptors: the signal tells of what is new, and will not come
again for those who still wait. So main also looks once in a while.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket

from models._limits import Refused
from models._scoreboard import ACCEPT
from models._server import OUT_OF_RESOURCES, RESOURCE_PAUSE, WAKES, Server
from models._threads import ClientThreads


def serve(server: Server) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})  # for all threads: it would end the process
    for fd in (server.stop.fileno(), *(listener.fileno() for listener in server.listeners)):
        send_sigio(fd)
    clients = ClientThreads(server)
    slot = server.scoreboard.take()
    slot.own("tunnel: sigio")
    slot.enter(ACCEPT)
    # fig: accept loop
    while not server.stop.requested:
        pause = min(accept_all(server, listener, clients) for listener in server.listeners)
        signal.sigtimedwait({signal.SIGIO}, pause)
        slot.beat()
        with contextlib.suppress(BlockingIOError):
            server.stop.clear_wakeup()
    # end fig
    clients.join()


def send_sigio(fd: int) -> None:
    """From now on this process gets SIGIO when something comes on `fd`, which no longer blocks."""
    # fig: ask for SIGIO
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    # end fig


def accept_all(server: Server, listener: socket.socket, clients: ClientThreads) -> float:
    """Takes all who wait. Returns the seconds after which to look again, signal or none."""
    # fig: accept until EAGAIN
    while not server.stop.requested:
        try:
            accepted = server.accept.take(listener)
        except Refused:
            return 0.0  # others may wait, of whom no signal will come; but first a sign of life
        except BlockingIOError:
            break
        except OSError as error:
            if server.stop.requested:
                break
            server.accept.survive(error)
            if error.errno in OUT_OF_RESOURCES:
                return RESOURCE_PAUSE
        else:
            server.accept.taken()
            clients.start(accepted)
    # end fig
    return WAKES
