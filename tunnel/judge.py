"""May this server open a connection there?

    a name ------> name patterns --denied--> no: no name server is asked
                       | allowed, or nothing said
                       v resolve
    each literal --unwrap--> IPv4 inside IPv6? --> ranges ------> an allowed name's? --> global unicast?
                                                     `-> yes, no       `-> yes            `-> yes, no

For a listener that others can reach: no loopback, private, link-local (with the clouds' metadata
service), carrier-grade NAT, multicast, reserved or unspecified address, and none of this machine's
own, nor what clouds keep at public addresses for their machines alone. `--allow` opens ranges and names,
`--deny` closes them.

Precedence: of the ranges that hold an address the narrowest decides, of the patterns that match a name
the longest; between equals, `--deny`. A denied name is not looked up. The addresses of an allowed name may
be of any kind, but for those in a denied range: what a name resolves to is its owner's choice. A range
of everything (0.0.0.0/0, ::/0) decides only where neither another range nor an allowed name does.

Rules: judge the literal that will be dialled, never only a name. Addresses that carry an IPv4 address
(mapped, NAT64, 6to4) are judged as that one: Python 3.11 calls `::ffff:127.0.0.1` no loopback, and
`64:ff9b::7f00:1` global. Whether an address is this machine's own is asked each time, since that may
change; all else about a literal stays as it was. Sources: RFC 6890, RFC 6052, RFC 3056, RFC 6598.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

from tunnel.address import encode_name
from tunnel.errors import ConfigError, HandshakeError

LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")  # RFC 1123, and the underscore that is used
NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA has given out; the rest has some local meaning
DOCUMENTATION = IPv6Network("3fff::/20")  # RFC 9637, unknown to Python 3.11
NOT_PUBLIC = (
    IPv4Network("192.0.0.0/24"),  # RFC 6890; Python 3.11 knows parts of it. Oracle's cloud: metadata
    IPv4Network("192.88.99.0/24"),  # RFC 7526: relays of 6to4, given up
    IPv4Network("168.63.129.16/32"),  # the host under an Azure machine: certificates, extensions, names
)
KNOWN = 1024  # literals whose verdict is kept: parsing one costs more than all the rest of its dial
ALSO: dict[IPv4Address | IPv6Address, IPv4Address | IPv6Address] = {  # what the unspecified addresses reach
    IPv4Address(0): IPv4Address("127.0.0.1"),
    IPv6Address(0): IPv6Address("::1"),
}
CARRIERS = (NAT64, IPv6Network("::ffff:0:0/96"), IPv6Network("2002::/16"))  # of IPv4; see `unwrap`

Range = IPv4Network | IPv6Network


class Rule(NamedTuple):
    """A range, and whether it is open."""

    network: Range
    opens: bool


class Judge:
    """Says whether an address may be dialled. Raises ConfigError for a rule that is none."""

    def __init__(
        self,
        allowed: Sequence[str],
        is_own: Callable[[str], bool],
        denied: Sequence[str] = (),
        *,
        trusts: bool = False,
    ) -> None:
        """`trusts`: the users are this machine's own, and may go wherever no rule says otherwise."""
        rules = [
            (parse_rule(text), opens) for texts, opens in ((allowed, True), (denied, False)) for text in texts
        ]
        self._names = {pattern: opens for pattern, opens in rules if isinstance(pattern, str)}
        ranges = [Rule(network, opens) for network, opens in rules if not isinstance(network, str)]
        self._ranges = sorted(ranges, key=lambda rule: (-rule.network.prefixlen, rule.opens))
        self._is_own = is_own
        self._verdict = lru_cache(KNOWN)(self._judge)
        self._trusts = trusts

    def allows_name(self, name: str) -> bool | None:
        """What the patterns say of a host name; None: nothing, its addresses decide."""
        if not self._names:
            return None
        # The resolver reads \115 as an s (RFC 1035 5.1): what it looks up is not what would be judged.
        if "\\" in name:
            return False
        labels = plain_name(name).split(".")
        patterns = [".".join(labels), *("*." + ".".join(labels[n:]) for n in range(1, len(labels))), "*"]
        return next((self._names[pattern] for pattern in patterns if pattern in self._names), None)

    def allows_as_named(self, literal: str) -> bool:
        """The same as `allows`, of an address that belongs to an allowed name."""
        rules = map(self._narrowest, reached(literal))
        return all(rule is None or rule.opens or not rule.network.prefixlen for rule in rules)

    def _narrowest(self, address: IPv4Address | IPv6Address) -> Rule | None:
        return next((rule for rule in self._ranges if address in rule.network), None)

    def allows(self, literal: str) -> bool:
        """`literal`: an IPv4 or IPv6 address, a zone is ignored."""
        verdict = self._verdict(literal)
        return verdict if isinstance(verdict, bool) else not self._is_own(verdict)

    def _judge(self, literal: str) -> bool | str:
        """What does not change while the server runs; a str: open, unless this machine has that address."""
        verdict, *others = map(self._judge_one, reached(literal))
        return verdict if all(others) else False

    def _judge_one(self, address: IPv4Address | IPv6Address) -> bool | str:
        if rule := self._narrowest(address):
            return rule.opens
        if self._trusts:
            return True
        if isinstance(address, IPv6Address) and (address not in GLOBAL_UNICAST or address in DOCUMENTATION):
            return False
        if any(address in network for network in NOT_PUBLIC):
            return False
        return str(address) if address.is_global and not address.is_multicast else False


def parse_rule(text: str) -> Range | str:
    """A CIDR range, or a pattern of names: `host.example.com`, `*.example.com` (all below it), `*`."""
    labels = plain_name(text).removeprefix("*.").split(".")
    dotted = len(labels) > 1 or text.startswith("*.")
    if text == "*" or (dotted and all(map(LABEL.fullmatch, labels)) and not labels[-1].isdecimal()):
        return plain_name(text)
    return parse_range(text)


def parse_range(text: str) -> Range:
    """A CIDR range; host bits may be set."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        expected = "expected a range such as 10.0.0.0/8 or fd00::/8, or names such as *.example.com"
        raise ConfigError(f"{text!r}: {expected}") from None
    if isinstance(network, IPv6Network) and any(map(network.subnet_of, CARRIERS)):
        raise ConfigError(f"{text!r} is a range of IPv4 in IPv6: expected a range such as the one it carries")
    return network


def plain_name(name: str) -> str:
    """As names are compared: in ASCII, lower case, without the root's dot."""
    if not name.isascii():
        with suppress(HandshakeError):  # no resolver takes it either
            name = encode_name(name).decode("ascii")
    return name.lower().removesuffix(".")


def reached(literal: str) -> list[IPv4Address | IPv6Address]:
    """What is reached by dialling it: the address itself, and what connect(2) makes of it."""
    address = unwrap(ip_address(literal.partition("%")[0]))
    return [address, ALSO[address]] if address in ALSO else [address]


def unwrap(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside a mapped, NAT64 or 6to4 one; any other address as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour or address
