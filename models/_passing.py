"""A connection that is passed to another process, over a UNIX socket pair (UNP 15.7).

    master: pass_on ==[ its place in the limits, SCM_RIGHTS ]==> receive: worker
                 <------------ one byte: I am free ------------

Rules: a client that could not be sent stays with who sends. One that was sent and cannot be taken in, for
want of a descriptor, is lost: so that worker is not free again before there is one.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from functools import partial

from models._limits import Limits
from models._scoreboard import ACCEPT, Slot
from models._server import WAKES, Server
from tunnel.connection import adopt, seconds
from tunnel.log import describe, log, peer_name

FREE = b"\0"
NO_DESCRIPTOR = -1


class Lost(OSError):
    """A client has been passed, and there was no descriptor for it."""

    def __init__(self) -> None:
        super().__init__(errno.EMFILE, os.strerror(errno.EMFILE))


def pass_on(limits: Limits, client: socket.socket, channel: socket.socket, pid: int) -> None:
    """To that child. Raises OSError."""
    fd = client.fileno()
    with limits.passing(fd, pid) as number:
        socket.send_fds(channel, [number], [fd])


def drop(limits: Limits, client: socket.socket, failure: OSError) -> None:
    """It stays with the master, which serves nobody."""
    log.error(f"client dropped: cannot pass it on: {describe(failure)}", peer_name(client))
    limits.claim(client.fileno()).leave()


def hear_only(channel: socket.socket, others: Iterable[socket.socket], server: Server) -> None:
    """In a new worker: nothing of what the master has but this end of its own channel."""
    for other in others:
        other.close()
    server.stop.close_listeners()
    server.stop.close = partial(channel.shutdown, socket.SHUT_RD)  # what was passed before is still read
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(WAKES))


def receive(server: Server, slot: Slot, channel: socket.socket) -> socket.socket | None:
    """The next client, once the master knows that this child is free. None: it passes no more."""
    slot.enter(ACCEPT)
    said = lost = False
    while said or not (server.stop.asked() or server.accept.left == 0):
        try:
            if lost:
                os.close(os.dup(channel.fileno()))  # if this fails, nobody is lost by it
                lost = False
            if not said:
                channel.send(FREE)
                said = True
                server.accept.taken()
            return take(server.limits, channel)
        except BlockingIOError:  # SO_RCVTIMEO
            pass
        except ConnectionError:
            return None
        except Lost as error:
            said, lost = False, True
            server.accept.sit_out(error, "client dropped")
        except OSError as error:
            server.accept.sit_out(error)
        slot.beat()
    return None


def take(limits: Limits, channel: socket.socket) -> socket.socket | None:
    """What has been passed; None after the end. Raises Lost, and OSError with which nothing is lost."""
    number, fds, *_ = socket.recv_fds(channel, 4, 1, socket.MSG_CMSG_CLOEXEC)
    if not number:
        return None
    fd = fds[0] if fds else NO_DESCRIPTOR
    limits.take_over(fd, int.from_bytes(number, "big"))
    if not fds:  # recvmsg(2) has no error for it, only a flag
        limits.claim(fd).leave()
        raise Lost
    return adopt(fd)
