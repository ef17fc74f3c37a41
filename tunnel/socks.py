"""SOCKS5, the server's half of the conversation (RFC 1928), as a Flow that answers its own peer.

    client                                  this end
    05 | n | methods            -->
                                <--         05 | 00                       no authentication
    05 | 01 | 00 | address      -->                                       CONNECT
                                <--         05 | code | 00 | 01 0.0.0.0:0 once dialled

Rules: one state variable, whose name says what is awaited; every refusal carries the bytes that
RFC 1928 section 6 asks for. What the client sent after its request is kept for the tunnel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from tunnel.address import ATYP_IPV4, ATYP_IPV6, ATYP_NAME, Address, pack, unpack
from tunnel.aead import Sealer
from tunnel.errors import HandshakeError, Truncated
from tunnel.flow import EMPTY, Opening

VERSION = 5
NO_AUTHENTICATION, NO_ACCEPTABLE = 0x00, 0xFF
CONNECT = 1
LINGER = 10.0  # seconds that a refused client is drained at most (RFC 1928 section 6)
SUCCEEDED, FAILURE, DENIED, NETWORK, HOST, REFUSED, EXPIRED, COMMAND, ADDRESS_TYPE = range(9)
REPLY_TO_ERRNO = {
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.ENETUNREACH: NETWORK,
    errno.EHOSTUNREACH: HOST,
    errno.ECONNREFUSED: REFUSED,
    errno.ETIMEDOUT: EXPIRED,
}


class SocksError(HandshakeError):
    """A request that is answered with a refusal; `reply` is the bytes of that answer."""

    def __init__(self, text: str, reply: bytes = b"") -> None:
        super().__init__(text)
        self.reply = reply


def reply(code: int) -> bytes:
    """RFC 1928 section 6, with the bound address left open (0.0.0.0:0)."""
    return bytes([VERSION, code, 0, ATYP_IPV4]) + bytes(6)


def request(target: Address) -> bytes:
    """What a client without authentication says first to reach `target`: greeting and CONNECT."""
    return bytes([VERSION, 1, NO_AUTHENTICATION, VERSION, CONNECT, 0]) + pack(target)


def reply_to(error: OSError) -> bytes:
    """The reply for a connection that could not be made."""
    return reply(REPLY_TO_ERRNO.get(error.errno or 0, FAILURE))


class SocksOpening(Opening):
    """Reads greeting and request, and passes on the target, and what came after it, to `up`."""

    __slots__ = ("_awaits", "_heard", "_up", "early")

    def __init__(self, up: Sealer) -> None:
        super().__init__()
        self._up = up
        self._awaits: Awaited | None = SocksOpening._greeting
        self._heard = b""
        self.early = False  # the client did not wait for the reply, and has sent payload already

    def buffer_updated(self, n: int) -> memoryview:
        """Returns what to answer. Raises SocksError."""
        if self._in is not None:
            self._heard += self._in[:n]
        answers = b""
        try:
            while self._awaits and (answer := self._awaits(self)) is not None:
                answers += answer
        except SocksError as error:
            error.reply = answers + error.reply
            raise
        return memoryview(answers)

    def eof(self) -> memoryview:
        if self._heard:
            raise Truncated("client stopped inside its SOCKS5 request")
        return EMPTY

    def _greeting(self) -> bytes | None:
        heard = self._heard
        if heard and heard[0] != VERSION:
            raise SocksError(f"first byte 0x{heard[0]:02x}: expected SOCKS version 5")
        if len(heard) < 2 or len(heard) < 2 + heard[1]:
            return None
        if NO_AUTHENTICATION not in heard[2 : 2 + heard[1]]:
            raise SocksError(
                "client insists on authentication: expected method 0 (none) on offer",
                bytes([VERSION, NO_ACCEPTABLE]),
            )
        self._heard = heard[2 + heard[1] :]
        self._awaits = SocksOpening._request
        return bytes([VERSION, NO_AUTHENTICATION])

    def _request(self) -> bytes | None:
        heard = self._heard
        if len(heard) < 4:
            return None
        if heard[0] != VERSION:
            raise SocksError(f"request version {heard[0]}: expected 5", reply(FAILURE))
        if heard[1] != CONNECT:
            raise SocksError(f"command {heard[1]}: expected 1 (CONNECT)", reply(COMMAND))
        try:
            parsed = unpack(heard[3:])
            header = pack(parsed[0]) if parsed else b""  # refuses names that no resolver would take
        except HandshakeError as error:
            known = heard[3] in (ATYP_IPV4, ATYP_NAME, ATYP_IPV6)
            raise SocksError(str(error), reply(FAILURE if known else ADDRESS_TYPE)) from None
        if parsed is None:
            return None
        self.target, size = parsed
        early = heard[3 + size :]
        self.early = bool(early)
        self._up.prepend(header + early)
        self._awaits = None
        self._heard = b""
        return b""


Awaited = Callable[[SocksOpening], bytes | None]
