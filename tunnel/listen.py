"""Listening sockets: bound before anything else is done, one for each place, or several that share it.

Rules: a place that cannot be had is an error that names it and says what would do. Options that
accepted sockets inherit are set here, once, and not for every connection (tcp(7)).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from tunnel.address import Address, encode_name
from tunnel.errors import ConfigError, HandshakeError


def listen(
    places: Sequence[Address],
    backlog: int,
    no_delay: bool,
    inherited: Sequence[tuple[str, Sequence[int]]],
    sharing: int = 1,
) -> list[list[socket.socket]]:
    """The listening sockets of each place: one, or as many as share it by SO_REUSEPORT.

    `inherited`: what a handover left, each place with its descriptors. All of a place is kept, since
    closing one of several drops the connections in its queue; a place that is no longer asked for is
    closed, or its port would stay open with nobody behind it. Raises ConfigError or OSError that names
    the place.
    """
    listeners = []
    left = list(inherited)
    for place in places:
        known = next((entry for entry in left if entry[0] == str(place)), None)  # the same may be there twice
        if known:
            left.remove(known)
        here = [socket.socket(fileno=fd) for fd in known[1]] if known else []
        for listener in here:
            listener.set_inheritable(False)
        listeners.append(here)
        try:
            while len(here) < sharing:
                actual = place._replace(port=bound_address(here[0]).port) if here else place
                here.append(bind(actual, len(places) == 1, joins=bool(here)))
                if sharing > 1:
                    here[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                here[-1].listen(backlog)
        except HandshakeError as error:
            raise ConfigError(f"cannot listen on {place}: {error}") from None
        except OSError as error:
            hint = {
                errno.EADDRINUSE: "the port is in use: expected a free one",
                errno.EACCES: "ports below 1024 are for root (see --user): expected a higher one",
                errno.EADDRNOTAVAIL: "expected an address of this machine",
            }
            text = hint.get(error.errno or 0, error.strerror)
            raise OSError(error.errno, f"cannot listen on {place}: {text}") from None
        set_no_delay(here, no_delay)
    for _, descriptors in left:
        for fd in descriptors:
            os.close(fd)
    return listeners


def set_no_delay(listeners: Sequence[socket.socket], no_delay: bool) -> None:
    """For those who will be accepted, whichever process has the listener."""
    for listener in listeners:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, no_delay)


def bind(place: Address, alone: bool, joins: bool) -> socket.socket:
    """`joins`: others are bound there already, and let it in. The first is bound without SO_REUSEPORT,
    or a second server of this user would quietly take a share of this one's clients."""
    host = encode_name(place.host)
    try:
        info = socket.getaddrinfo(host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, error.strerror) from None
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if info[0] == socket.AF_INET6:
        # Alone, [::] serves IPv4 too; beside 0.0.0.0 it must leave the port's other half free.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
    if joins:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(info[4])
    return listener


def bound_address(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def on_loopback(listeners: Sequence[socket.socket]) -> bool:
    """True if only this machine's users can reach the server."""
    hosts = [listener.getsockname()[0] for listener in listeners]
    return all(host == "::1" or host.startswith("127.") for host in hosts)
