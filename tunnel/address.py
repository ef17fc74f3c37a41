"""SOCKS addresses: where a connection wants to go, as RFC 1928 section 5 writes it.

    +------+--------------------------------------+---------+
    | ATYP | 1: IPv4, 4 bytes                     | port    |
    |  1   | 3: length 1, then a name of 1 to 255 | 2,      |
    |      | 4: IPv6, 16 bytes                    | u16be   |
    +------+--------------------------------------+---------+

Rules: an IP address travels as text in its canonical form, so that it is judged and dialled as
the literal it is. A name is the peer's text: checked here once, and shown only through `str()`,
which escapes what could forge a log line.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from tunnel.errors import HandshakeError

ATYP_IPV4, ATYP_NAME, ATYP_IPV6 = 1, 3, 4


class Address(NamedTuple):
    """A host (IPv4 or IPv6 literal, or a name) and a port (1 to 65535)."""

    host: str
    port: int

    def __str__(self) -> str:
        host = self.host.encode("unicode_escape").decode("ascii")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@lru_cache(1024)
def ipv4_bytes(host: str) -> bytes | None:
    """The 4 bytes of a dotted quad in canonical form, or None."""
    parts = host.split(".")
    if len(parts) != 4:
        return None
    try:
        packed = bytes(int(part) for part in parts)
    except ValueError:
        return None
    return packed if ".".join(map(str, packed)) == host else None


@lru_cache(1024)
def ipv4_text(packed: bytes) -> str:
    """The dotted quad of 4 bytes."""
    return ".".join(map(str, packed))


def ipv6_bytes(host: str) -> bytes | None:
    """The 16 bytes of an IPv6 literal (RFC 4291 section 2.2, no zone), or None."""
    if ":" not in host:
        return None
    from ipaddress import AddressValueError, IPv6Address  # noqa: PLC0415 - importing is forking cost

    try:
        address = IPv6Address(host)
    except AddressValueError:
        return None
    return None if address.scope_id else address.packed


def ipv6_text(packed: bytes) -> str:
    """RFC 5952's text of 16 bytes."""
    from ipaddress import IPv6Address  # noqa: PLC0415

    return str(IPv6Address(packed))


def pack(address: Address) -> bytes:
    """The address header; raises HandshakeError for a name that does not fit."""
    port = address.port.to_bytes(2, "big")
    if packed := ipv4_bytes(address.host):
        return bytes([ATYP_IPV4]) + packed + port
    if packed := ipv6_bytes(address.host):
        return bytes([ATYP_IPV6]) + packed + port
    name = encode_name(address.host)
    return bytes([ATYP_NAME, len(name)]) + name + port


def encode_name(host: str) -> bytes:
    """A host name as the resolver and the wire want it: ASCII, other scripts by IDNA (RFC 3490)."""
    try:
        name = host.encode("ascii") if host.isascii() else host.encode("idna")
    except UnicodeError:
        name = b""
    if not 1 <= len(name) <= 255 or b"\0" in name:
        raise HandshakeError(f"host name {host[:40]!r}: expected 1 to 255 bytes without NUL")
    return name


def unpack(header: bytes | memoryview) -> tuple[Address, int] | None:
    """The address at the start of `header` and the bytes it took; None while it is incomplete.

    Raises HandshakeError for an unknown ATYP, an empty or impossible name, or port 0.
    """
    if not header:
        return None
    kind = header[0]
    if kind == ATYP_IPV4:
        start, end = 1, 5
    elif kind == ATYP_IPV6:
        start, end = 1, 17
    elif kind != ATYP_NAME:
        raise HandshakeError(f"address type {kind}: expected 1 (IPv4), 3 (name) or 4 (IPv6)")
    elif len(header) < 2:
        return None
    else:
        start, end = 2, 2 + header[1]
        if start == end:
            raise HandshakeError("host name is empty: expected 1 to 255 bytes")
    if len(header) < end + 2:
        return None
    packed = bytes(header[start:end])
    port = header[end] << 8 | header[end + 1]
    if port == 0:
        raise HandshakeError("port 0: expected 1 to 65535")
    if kind == ATYP_IPV4:
        host = ipv4_text(packed)
    elif kind == ATYP_IPV6:
        host = ipv6_text(packed)
    else:
        host = decode_name(packed)
    return Address(host, port), end + 2


def decode_name(name: bytes) -> str:
    """A peer's host name as text. A NUL would end it early in the C resolver, so it is refused."""
    if b"\0" in name:
        raise HandshakeError("host name contains NUL: expected text")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise HandshakeError("host name is not UTF-8: expected text") from None
