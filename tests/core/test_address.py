"""Addresses: every form that RFC 1928 knows, every one that it does not, and what a log may show."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.address import Address, ipv4_bytes, ipv6_bytes, pack, unpack
from tunnel.errors import HandshakeError

ports = st.integers(1, 65535)
labels = st.text("abcXYZ019-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=6).map(".".join).filter(lambda name: ipv4_bytes(name) is None)

KNOWN = [
    ("192.0.2.1", 80, "01 c0000201 0050"),
    ("0.0.0.0", 65535, "01 00000000 ffff"),
    ("2001:db8::1", 443, "04 20010db8000000000000000000000001 01bb"),
    ("::", 1, "04 00000000000000000000000000000000 0001"),
    ("example.com", 8388, "03 0b 6578616d706c652e636f6d 20c4"),
    ("a", 256, "03 01 61 0100"),
]


@pytest.mark.parametrize(("host", "port", "header"), KNOWN)
def test_an_address_is_written_and_read_as_the_document_says(host: str, port: int, header: str) -> None:
    packed = bytes.fromhex(header)
    assert pack(Address(host, port)) == packed
    assert unpack(packed) == (Address(host, port), len(packed))
    assert unpack(memoryview(packed)) == (Address(host, port), len(packed))


# Round trips


@given(st.ip_addresses(v=4), ports)
def test_ipv4_comes_back(ip: ipaddress.IPv4Address, port: int) -> None:
    header = pack(Address(str(ip), port))
    assert header[0] == 1
    assert unpack(header) == (Address(str(ip), port), 7)


@given(st.ip_addresses(v=6), ports)
@example(ipaddress.IPv6Address("::ffff:127.0.0.1"), 1)
def test_ipv6_comes_back_in_canonical_text(ip: ipaddress.IPv6Address, port: int) -> None:
    for spelling in (str(ip), ip.exploded, ip.exploded.upper()):
        header = pack(Address(spelling, port))
        assert header == b"\x04" + ip.packed + port.to_bytes(2, "big")
        assert unpack(header) == (Address(str(ip), port), 19)


@given(names, ports)
@example("x" * 255, 65535)
def test_a_name_comes_back(name: str, port: int) -> None:
    header = pack(Address(name, port))
    assert header[:2] == bytes([3, len(name)])
    assert unpack(header) == (Address(name, port), len(name) + 4)


@pytest.mark.parametrize(
    "host", ["1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.256", "1.2.3.-4", "1.2.3.4 ", "\u0663.2.3.4"]
)
def test_what_is_nearly_an_ipv4_address_is_none(host: str) -> None:
    assert ipv4_bytes(host) is None


@pytest.mark.parametrize("host", [":", ":::", "1::2::3", "fe80::1%eth0", "12345::", "::1.2.3.400", "host:80"])
def test_what_is_nearly_an_ipv6_address_is_none(host: str) -> None:
    assert ipv6_bytes(host) is None


def test_a_name_in_another_script_travels_in_its_ascii_form() -> None:
    assert pack(Address("bücher.example", 80))[2:-2] == b"xn--bcher-kva.example"


@given(st.sampled_from([header for *_, header in KNOWN]), st.binary(max_size=40))
def test_what_follows_the_header_is_left_alone(header: str, behind: bytes) -> None:
    packed = bytes.fromhex(header)
    parsed = unpack(packed + behind)
    assert parsed is not None
    assert parsed == unpack(packed)


# Not whole, and not meant


@pytest.mark.parametrize("header", [header for *_, header in KNOWN])
def test_every_truncation_is_incomplete_and_no_error(header: str) -> None:
    packed = bytes.fromhex(header)
    for size in range(len(packed)):
        assert unpack(packed[:size]) is None


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {1, 3, 4}))
def test_an_unknown_address_type_is_refused_by_its_first_byte(kind: int) -> None:
    with pytest.raises(HandshakeError, match=f"address type {kind}: expected 1"):
        unpack(bytes([kind]))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("03 00", "empty"),
        ("03 00 0050", "empty"),
        ("01 c0000201 0000", "port 0"),
        ("04 20010db8000000000000000000000001 0000", "port 0"),
        ("03 01 61 0000", "port 0"),
        ("03 03 610062 0050", "NUL"),
        ("03 01 00 0050", "NUL"),
        ("03 02 c328 0050", "UTF-8"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(header: str, reason: str) -> None:
    with pytest.raises(HandshakeError, match=reason):
        unpack(bytes.fromhex(header))


@pytest.mark.parametrize("host", ["", "x" * 256, "a\0b", "\0", "ü" * 300, "ü..ü"])
def test_a_name_that_does_not_fit_is_not_packed(host: str) -> None:
    with pytest.raises(HandshakeError, match="expected 1 to 255 bytes without NUL"):
        pack(Address(host, 80))


kinds = st.sampled_from([b"", b"\1", b"\3", b"\3\0", b"\3\1", b"\3\5", b"\4"])


@given(st.builds(bytes.__add__, kinds, st.binary(max_size=30)))
@example(b"\1" + bytes(6))
@example(b"\3\1a\0\0")
def test_any_bytes_are_an_address_incomplete_or_refused(noise: bytes) -> None:
    try:
        parsed = unpack(noise)
    except HandshakeError:
        return
    if parsed is not None:
        address, size = parsed
        assert 1 <= address.port <= 65535
        assert address.host
        assert size <= len(noise)
        assert unpack(noise[:size]) == parsed
        assert unpack(noise[: size - 1]) is None


# In a log line


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("example.com", "example.com:80"),
        ("192.0.2.1", "192.0.2.1:80"),
        ("2001:db8::1", "[2001:db8::1]:80"),
        ("a\nerror forged", r"a\nerror forged:80"),
        ("a\r\tb", r"a\r\tb:80"),
        ("\x1b[2J", r"\x1b[2J:80"),
        ("a\u202eb", r"a\u202eb:80"),
        ("a\x85b\u2028", r"a\x85b\u2028:80"),
        ("back\\slash", r"back\\slash:80"),
    ],
)
def test_control_characters_in_a_name_are_escaped(host: str, shown: str) -> None:
    assert str(Address(host, 80)) == shown
    assert f"{Address(host, 80)}" == shown


@given(st.text(min_size=1, max_size=60))
def test_an_address_is_always_one_printable_line(host: str) -> None:
    shown = str(Address(host, 80))
    assert shown.isprintable()
    assert shown.isascii()


@given(st.text(min_size=1, max_size=10), st.text(min_size=1, max_size=10))
@example("\n", "\\n")
@example("\xe9", "\\xe9")
@example("\xe9", "e")
@example("\xe9", "?")
def test_two_names_never_look_the_same(one: str, other: str) -> None:
    assert (str(Address(one, 80)) == str(Address(other, 80))) == (one == other)
