"""Dialling: resolve once, judge every address, connect to the literal.

    name --judge, resolve--> [sockaddr, ...] --judge--> [allowed, ...] --connect, in turn--> socket

Two ways to drive it. `dial(target)` blocks: the blocking models. `dial.addresses(target)` and
`dial.start(sockaddr)` are its halves, for loops: they wait for the connection themselves, and leave
`addresses` to a helper thread where it would ask a name server (`literal`). So does `dial(target)`
(lookup.py): a name gets the connect timeout and not longer, whatever resolv.conf says.

Rules: the address that was judged is the one that is dialled; judging a name and dialling it again
would let its owner change the answer in between (DNS rebinding). Of a name, MOST_ADDRESSES are tried.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from tunnel.address import Address, encode_name, ipv4_bytes, ipv6_bytes
from tunnel.connection import Connection, seconds
from tunnel.errors import HandshakeError

if TYPE_CHECKING:
    from tunnel.judge import Judge
    from tunnel.lookup import Lookups

# Whoever owns a name chooses how many addresses it has. Each may take the whole connect timeout, and a worker
# that blocks is held meanwhile.
MOST_ADDRESSES = 8

SockAddr = tuple[str, int] | tuple[str, int, int, int]


class DestinationDenied(PermissionError):
    """The target's addresses are all closed to this server's users."""


def closed(host: str) -> DestinationDenied:
    return DestinationDenied(errno.EACCES, f"destination {host} is closed to users of this server")


def is_literal(host: str) -> bool:
    """True for an IP address: no name server will be asked."""
    return bool(ipv4_bytes(host) or ipv6_bytes(host))


def is_own(literal: str) -> bool:
    """True for an address of this machine: only such can be bound to (bind(2), EADDRNOTAVAIL).

    An address that cannot be asked about, because ports or memory have run out, counts as one.
    """
    family = socket.AF_INET6 if ":" in literal else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((literal, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def resolve(place: Address) -> list[SockAddr]:
    """The addresses of a host, at least one. Blocks for a name. Raises OSError."""
    if ipv4_bytes(place.host):
        return [(place.host, place.port)]
    try:
        name = encode_name(place.host)
    except HandshakeError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    answers = socket.getaddrinfo(name, place.port, type=socket.SOCK_STREAM)
    return [answer[4] for answer in answers]  # type: ignore[misc]


class Dial:
    """Connects to targets, or, at the client end, to its server whatever the target."""

    def __init__(
        self,
        judge: Judge | None = None,
        servers: Sequence[Address] = (),
        timeout: float = 10.0,
        no_delay: bool = True,
    ) -> None:
        self._judge = judge  # None: everything is open
        self._servers = servers  # dialled instead of any target, the next if one does not answer
        self._no_delay = no_delay
        self._timeout = seconds(timeout)
        self.timeout = timeout
        self._lookups: Lookups[list[SockAddr]] | None = None

    def __call__(self, target: Address, between: Callable[[], None]) -> socket.socket:
        """A connected blocking socket. Raises OSError: of the last address tried, or DestinationDenied.

        Calls `between()` before each address, since each may take `timeout`, and now and then while a name
        server thinks, which has that time, too.
        """
        failure: OSError | None = None
        for address in self.addresses(target) if self.literal(target) else self._find(target, between):
            between()
            try:
                return self._connect(address)
            except OSError as error:
                failure = error
        assert failure is not None
        raise failure

    def literal(self, target: Address) -> bool:
        """True if `addresses(target)` returns without asking a name server."""
        return all(is_literal(place.host) for place in self._servers or (target,))

    def addresses(self, target: Address) -> list[SockAddr]:
        """What to try, in order, at least one. Blocks for a name. Raises OSError."""
        if self._servers:
            return self._of_servers()
        judge = self._judge
        named = judge.allows_name(target.host) if judge and not is_literal(target.host) else None
        if named is False:
            raise closed(target.host)
        found = resolve(target)
        if judge is None:
            return found[:MOST_ADDRESSES]
        allows = judge.allows_as_named if named else judge.allows
        allowed = list(islice((address for address in found if allows(address[0])), MOST_ADDRESSES))
        if not allowed:
            raise closed(found[0][0])
        return allowed

    def _find(self, target: Address, between: Callable[[], None]) -> list[SockAddr]:
        """`addresses`, which is given up after `timeout`."""
        if self._lookups is None:
            try:
                from tunnel.lookup import Lookups  # noqa: PLC0415 - for names alone
            except ImportError as error:  # no descriptor to read it by
                raise OSError(None, str(error)) from None
            self._lookups = Lookups(self.addresses)
        return self._lookups.find(target, self.timeout, between)

    def _of_servers(self) -> list[SockAddr]:
        found: list[SockAddr] = []
        failure: OSError | None = None
        for place in self._servers:
            try:
                found += resolve(place)
            except OSError as error:
                failure = error
        if failure and not found:
            raise failure
        return found

    def start(self, address: SockAddr, kind: type[socket.socket] = Connection) -> socket.socket:
        """A non-blocking socket whose connection is in progress, or made. Raises OSError.

        `kind`: somebody else's loop counts on all that a `socket.socket` has.
        """
        sock = self._socket(address, kind)
        try:
            sock.setblocking(False)
            code = sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, address: SockAddr) -> socket.socket:
        sock = self._socket(address, Connection)
        try:
            # connect(2) gives up after SO_SNDTIMEO: one call, where settimeout() would add a poll
            # to every later call on this socket.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, self._timeout)
            sock.connect(address)
        except BlockingIOError:
            sock.close()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _socket(self, address: SockAddr, kind: type[socket.socket]) -> socket.socket:
        family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
        sock = kind(family, socket.SOCK_STREAM)
        if self._no_delay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
