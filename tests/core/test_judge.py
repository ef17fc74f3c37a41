"""Where a server's users may go: out into the world, and nowhere that is not the world."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import ConfigError
from tunnel.judge import Judge, parse_range, parse_rule

CLOSED = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%eth0", "febf::1"],
    "metadata": ["169.254.169.254", "169.254.170.2", "fd00:ec2::254"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "4000::1", "fec0::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"],
    "IPv4-compatible": ["::127.0.0.1", "::10.0.0.1"],
    "translated": ["::ffff:0:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::127.0.0.1"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::"],
    "Teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::1"],
    "discard-only": ["100::1"],
    "for protocols": ["192.0.0.8", "192.0.0.192", "192.88.99.1", "64:ff9b::192.0.0.192"],
    "clouds'": ["168.63.129.16", "::ffff:168.63.129.16"],
}
OPEN = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "169.253.255.255",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


def nobodys(_: str) -> bool:
    return False


def named(families: dict[str, list[str]]) -> list[object]:
    return [pytest.param(each, id=f"{name} {each}") for name, family in families.items() for each in family]


@pytest.mark.parametrize("literal", named(CLOSED))
def test_what_is_not_the_public_internet_is_closed(literal: str) -> None:
    assert not Judge([], nobodys).allows(literal)


@pytest.mark.parametrize("literal", OPEN)
def test_the_public_internet_is_open(literal: str) -> None:
    assert Judge([], nobodys).allows(literal)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_whatever_it_is_wrapped(ip: ipaddress.IPv4Address) -> None:
    verdict = Judge([], nobodys).allows(str(ip))
    inside = int(ip)
    for wrapped in (0xFFFF << 32 | inside, 0x64FF9B << 96 | inside, 0x2002 << 112 | inside << 80 | 1):
        assert Judge([], nobodys).allows(str(ipaddress.IPv6Address(wrapped))) == verdict


@given(st.ip_addresses(v=6))
def test_ipv6_outside_of_what_iana_gave_out_is_closed(ip: ipaddress.IPv6Address) -> None:
    carries_ipv4 = ip.ipv4_mapped or ip in ipaddress.IPv6Network("64:ff9b::/96")
    if not carries_ipv4 and ip not in ipaddress.IPv6Network("2000::/3"):
        assert not Judge([], nobodys).allows(str(ip))


# --allow


@pytest.mark.parametrize(
    ("allowed", "literal"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3/8", "10.200.0.1"),
        ("127.0.0.0/8", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("127.0.0.1", "64:ff9b::7f00:1"),
        ("fd00::/8", "fd12::1"),
        ("::1", "::1"),
        ("0.0.0.0/0", "169.254.169.254"),
    ],
)
def test_an_allowed_range_is_open(allowed: str, literal: str) -> None:
    assert not Judge([], nobodys).allows(literal)
    assert Judge(["192.168.77.0/24", allowed], nobodys).allows(literal)


@pytest.mark.parametrize(
    ("allowed", "literal"),
    [
        ("10.0.0.0/8", "127.0.0.1"),
        ("10.0.0.0/8", "192.168.0.1"),
        ("fd00::/8", "10.0.0.1"),
        ("0.0.0.0/0", "::1"),
    ],
)
def test_an_allowed_range_opens_nothing_else(allowed: str, literal: str) -> None:
    assert not Judge([allowed], nobodys).allows(literal)


@pytest.mark.parametrize(
    "text", ["", "banana", "10.0.0.0/33", "10.0.0", "fd00::/129", "10.0.0.0/8,fd00::/8", "::/x"]
)
def test_a_range_that_is_none_is_an_error_that_says_what_was_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a range such as"):
        parse_range(text)
    with pytest.raises(ConfigError, match="expected a range such as"):
        Judge([text], nobodys)


# The unspecified address, which connect(2) takes for loopback


@pytest.mark.parametrize(
    ("denied", "literal"),
    [
        ("127.0.0.0/8", "0.0.0.0"),
        ("127.0.0.1", "::ffff:0.0.0.0"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::"),
        ("::1", "::%lo"),
        ("::", "::"),
    ],
)
def test_the_unspecified_address_is_closed_where_loopback_is(denied: str, literal: str) -> None:
    judge = Judge([], nobodys, [denied], trusts=True)
    assert not judge.allows(literal)
    assert not judge.allows_as_named(literal)
    other = Judge([], nobodys, ["192.168.77.0/24"], trusts=True)
    assert other.allows(literal)
    assert other.allows_as_named(literal)


def test_the_unspecified_address_is_opened_with_loopback_or_not_at_all() -> None:
    assert not Judge(["0.0.0.0/32"], nobodys).allows("0.0.0.0")
    assert not Judge(["127.0.0.0/8"], nobodys).allows("0.0.0.0")
    assert Judge(["0.0.0.0/32", "127.0.0.0/8"], nobodys).allows("0.0.0.0")
    assert not Judge(["0.0.0.0/8"], nobodys, ["127.0.0.1"]).allows("0.0.0.0")


# The machine's own addresses


@pytest.mark.parametrize("literal", ["93.184.216.34", "2606:4700::1", "::ffff:93.184.216.34"])
def test_the_machines_own_addresses_are_closed_although_they_are_public(literal: str) -> None:
    own = {"93.184.216.34", "2606:4700::1"}
    assert not Judge([], own.__contains__).allows(literal)
    assert Judge([], own.__contains__).allows("8.8.8.8")


def test_the_machines_own_address_can_be_opened_by_name() -> None:
    assert Judge(["93.184.216.34/32"], lambda _: True).allows("93.184.216.34")


def test_what_is_bound_here_is_the_machines_own() -> None:
    from tunnel.dial import is_own

    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.1")
    assert not is_own("2001:db8::1")


def test_an_address_that_cannot_be_asked_about_counts_as_the_machines_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No port is left to bind to: what cannot be judged is not dialled."""
    from tunnel import dial

    class NoPort(socket.socket):
        def bind(self, _: object) -> None:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr("tunnel.dial.socket.socket", NoPort)
    assert dial.is_own("192.0.2.1")


def test_an_address_that_the_machine_gets_later_is_closed_from_then_on() -> None:
    own: set[str] = set()
    judge = Judge([], own.__contains__)
    assert judge.allows("93.184.216.34")
    own.add("93.184.216.34")
    assert not judge.allows("93.184.216.34")
    own.clear()
    assert judge.allows("93.184.216.34")


# --deny, and what of several rules decides


def judge(allow: str = "", deny: str = "", trusts: bool = False) -> Judge:
    return Judge(allow.split(), nobodys, deny.split(), trusts=trusts)


@pytest.mark.parametrize(
    ("allow", "deny", "literal", "verdict"),
    [
        ("", "8.8.8.0/24", "8.8.8.8", False),
        ("", "8.8.8.0/24", "8.8.4.4", True),
        ("", "8.8.8.0/24", "::ffff:8.8.8.8", False),
        ("", "8.8.8.0/24", "64:ff9b::8.8.8.8", False),
        ("", "2606:4700::/32", "2606:4700::1", False),
        ("10.0.0.0/8", "10.0.0.5", "10.0.0.5", False),
        ("10.0.0.0/8", "10.0.0.5", "10.0.0.6", True),
        ("10.1.0.0/16", "10.0.0.0/8", "10.1.2.3", True),
        ("10.1.0.0/16", "10.0.0.0/8", "10.2.0.1", False),
        ("10.0.0.0/8", "10.0.0.0/8", "10.0.0.1", False),
        ("10.1.0.0/16", "0.0.0.0/0", "10.1.2.3", True),
        ("10.1.0.0/16", "0.0.0.0/0", "8.8.8.8", False),
        ("10.1.0.0/16", "0.0.0.0/0", "2606:4700::1", True),
        ("", "0.0.0.0/0 ::/0", "2606:4700::1", False),
    ],
)
def test_the_narrowest_range_decides_and_between_equals_deny(
    allow: str, deny: str, literal: str, verdict: bool
) -> None:
    assert judge(allow, deny).allows(literal) is verdict


def test_this_machines_own_users_go_anywhere_but_where_it_is_denied() -> None:
    trusting = judge("", "127.0.0.0/8 10.0.0.0/8", trusts=True)
    assert not trusting.allows("127.0.0.1")
    assert not trusting.allows("10.0.0.1")
    assert trusting.allows("192.168.0.1")
    assert trusting.allows("8.8.8.8")


@pytest.mark.parametrize(
    ("allow", "deny", "name", "verdict"),
    [
        ("", "", "example.com", None),
        ("", "8.8.8.8", "example.com", None),
        ("", "example.com", "example.com", False),
        ("", "example.com", "EXAMPLE.com.", False),
        ("", "Example.COM.", "example.com", False),
        ("", "example.com", "www.example.com", None),
        ("", "example.com", "example.com.evil.net", None),
        ("", "*.example.com", "www.example.com", False),
        ("", "*.example.com", "a.b.example.com", False),
        ("", "*.example.com", "example.com", None),
        ("", "*.example.com", "notexample.com", None),
        ("", "*.com", "example.com", False),
        ("", "*", "example.com", False),
        ("", "*", "localhost", False),
        ("www.example.com", "*.example.com", "www.example.com", True),
        ("www.example.com", "*.example.com", "ftp.example.com", False),
        ("*.example.com", "www.example.com", "www.example.com", False),
        ("*.example.com", "*", "www.example.com", True),
        ("*.example.com", "*.example.com", "www.example.com", False),
        ("", "bücher.example", "BÜCHER.example", False),
        ("", "bücher.example", "xn--bcher-kva.example", False),
        ("", "*.example.com", "a" * 70 + ".example.com", False),
        ("", "*.example.com", "www.\\101xample.com", False),
        ("", "*.example.com", "www.exampl\\e.com", False),
        ("*.example.com", "", "evil\\.example.com", False),
    ],
)
def test_the_longest_pattern_decides_and_between_equals_deny(
    allow: str, deny: str, name: str, verdict: bool | None
) -> None:
    assert judge(allow, deny).allows_name(name) is verdict


def test_addresses_of_an_allowed_name_are_open_but_for_denied_ranges() -> None:
    by_name = judge("*.example.com", "169.254.0.0/16 0.0.0.0/0")
    assert by_name.allows_as_named("10.0.0.1")
    assert by_name.allows_as_named("8.8.8.8"), "a range of everything decides when nothing else does"
    assert not by_name.allows_as_named("169.254.169.254")
    assert not by_name.allows_as_named("::ffff:169.254.169.254")
    assert not by_name.allows("8.8.8.8")


@pytest.mark.parametrize(
    "text", ["*.*", "a..b", "*.", "*example.com", "www.*.com", "a b.com", "-a.com", "a-.com", "x/y.com"]
)
def test_a_pattern_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a range such as .*names such as"):
        parse_rule(text)


@pytest.mark.parametrize("text", ["::ffff:10.0.0.0/104", "64:ff9b::/96", "2002:a00::/24", "::ffff:127.0.0.1"])
def test_a_range_that_would_match_nothing_is_an_error(text: str) -> None:
    """Such addresses are judged as the IPv4 address that they carry."""
    with pytest.raises(ConfigError, match="is a range of IPv4 in IPv6"):
        Judge([], nobodys, [text])


@given(st.text(max_size=40), st.sampled_from(["*.example.com", "example.com", "*"]))
def test_no_name_is_too_odd_to_be_judged(name: str, pattern: str) -> None:
    assert judge("", pattern).allows_name(name) in (None, False)
