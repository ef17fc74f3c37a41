"""May this server open a connection to that address?

    a literal --unwrap--> IPv4 inside IPv6? --> in an allowed range? --> global unicast? --> yes
                                                      `-> yes                `-> no: denied

For a listener that others can reach: no loopback, private, link-local (with the clouds' metadata
service), carrier-grade NAT, multicast, reserved or unspecified address, and none of this machine's
own. Ranges are opened by name (`--allow 10.0.0.0/8`).

Rules: judge the literal that will be dialled, never a name. Addresses that carry an IPv4 address
(mapped, NAT64, 6to4) are judged as that one: Python 3.11 calls `::ffff:127.0.0.1` no loopback, and
`64:ff9b::7f00:1` global. Whether an address is this machine's own is asked each time, since that may
change; all else about a literal stays as it was. Sources: RFC 6890, RFC 6052, RFC 3056, RFC 6598.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from tunnel.errors import ConfigError

NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA has given out; the rest has some local meaning
DOCUMENTATION = IPv6Network("3fff::/20")  # RFC 9637, unknown to Python 3.11
KNOWN = 1024  # literals whose verdict is kept: parsing one costs more than all the rest of its dial


class Judge:
    """Says whether an address may be dialled. Raises ConfigError for a range that is none."""

    def __init__(self, allowed: Sequence[str], is_own: Callable[[str], bool]) -> None:
        self._allowed = [parse_range(text) for text in allowed]
        self._is_own = is_own
        self._verdict = lru_cache(KNOWN)(self._judge)

    def allows(self, literal: str) -> bool:
        """`literal`: an IPv4 or IPv6 address, a zone is ignored."""
        verdict = self._verdict(literal)
        return verdict if isinstance(verdict, bool) else not self._is_own(verdict)

    def _judge(self, literal: str) -> bool | str:
        """What does not change while the server runs; a str: open, unless this machine has that address."""
        address = unwrap(ip_address(literal.partition("%")[0]))
        if any(address in network for network in self._allowed):
            return True
        if isinstance(address, IPv6Address) and (address not in GLOBAL_UNICAST or address in DOCUMENTATION):
            return False
        return str(address) if address.is_global and not address.is_multicast else False


def parse_range(text: str) -> IPv4Network | IPv6Network:
    """A CIDR range; host bits may be set."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"allow {text!r}: expected a range such as 10.0.0.0/8 or fd00::/8") from None


def unwrap(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside a mapped, NAT64 or 6to4 one; any other address as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour or address
