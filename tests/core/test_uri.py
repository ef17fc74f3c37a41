"""ss:// URIs (SIP002): every spelling that phones and laptops write, and none of the secret in an error."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.feeding import methods
from tunnel.address import Address
from tunnel.config import format_uri, parse_uri
from tunnel.errors import ConfigError

WANTED = {"server": ["192.0.2.1"], "server_port": 8388, "method": "aes-256-gcm", "password": "s3cr3t/?:@#~ÿé"}
PLAIN = f"{WANTED['method']}:{WANTED['password']}"
STANDARD = base64.b64encode(PLAIN.encode()).decode()
URLSAFE = base64.urlsafe_b64encode(PLAIN.encode()).decode()
LEGACY = base64.b64encode(f"{PLAIN}@192.0.2.1:8388".encode()).decode()
PERCENT = f"{WANTED['method']}:{quote(str(WANTED['password']), safe='')}"

SPELLINGS = {
    "base64url": f"ss://{URLSAFE.rstrip('=')}@192.0.2.1:8388",
    "base64url, padded": f"ss://{URLSAFE}@192.0.2.1:8388",
    "base64": f"ss://{STANDARD}@192.0.2.1:8388",
    "padding percent-encoded": f"ss://{quote(STANDARD, safe='')}@192.0.2.1:8388",
    "percent-encoded": f"ss://{PERCENT}@192.0.2.1:8388",
    "with a slash": f"ss://{URLSAFE}@192.0.2.1:8388/",
    "with a tag": f"ss://{URLSAFE}@192.0.2.1:8388#my%20server",
    "with a slash and a tag": f"ss://{URLSAFE}@192.0.2.1:8388/#tag",
    "with an @ in the tag": f"ss://{URLSAFE}@192.0.2.1:8388#me@home",
    "with an empty query": f"ss://{URLSAFE}@192.0.2.1:8388/?#tag",
    "with an empty plugin": f"ss://{URLSAFE}@192.0.2.1:8388/?plugin=#tag",
    "with an unknown query": f"ss://{URLSAFE}@192.0.2.1:8388/?group=home",
    "legacy": f"ss://{LEGACY}",
    "legacy, unpadded": f"ss://{LEGACY.rstrip('=')}",
    "legacy with a tag": f"ss://{LEGACY}#tag",
    "with white space around": f"  ss://{URLSAFE}@192.0.2.1:8388\n",
}
assert "=" in STANDARD + LEGACY, "padding would not be tested"
assert "+" in STANDARD and "/" in STANDARD, "the two alphabets would not be told apart"  # noqa: PT018


@pytest.mark.parametrize("uri", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_means_the_same(uri: str) -> None:
    assert parse_uri(uri) == WANTED


@pytest.mark.parametrize("host", ["example.com", "192.0.2.1", "2001:db8::1", "::1"])
def test_a_host_may_be_a_name_or_a_literal(host: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    for uri in (
        f"ss://{URLSAFE}@{shown}:443",
        "ss://" + base64.b64encode(f"{PLAIN}@{shown}:443".encode()).decode(),
    ):
        values = parse_uri(uri)
        assert (values["server"], values["server_port"]) == ([host], 443)


hosts = st.one_of(
    st.ip_addresses().map(str), st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=60)
)


@given(methods, st.text(min_size=1, max_size=100), hosts, st.integers(1, 65535))
@example("aes-128-gcm", ":", "::", 1)
@example("aes-128-gcm", "\xff\xfe??>>", "a", 65535)
def test_what_is_written_is_read(method: str, password: str, host: str, port: int) -> None:
    uri = format_uri(method, password, Address(host, port))
    assert parse_uri(uri) == {"server": [host], "server_port": port, "method": method, "password": password}
    assert uri.isascii()
    assert uri.isprintable()
    assert not set(uri.removeprefix("ss://").rpartition("@")[0]) & set("+/="), "not base64url"


@given(methods, st.text(min_size=1, max_size=50), hosts, st.integers(1, 65535))
def test_a_percent_encoded_password_is_read(method: str, password: str, host: str, port: int) -> None:
    uri = f"ss://{method}:{quote(password, safe='')}@{Address(host, port)}/#tag"
    assert parse_uri(uri)["password"] == password


WRONG = {
    "another scheme": ("https://example.com", "ss://"),
    "no scheme": (URLSAFE, "ss://"),
    "a password": ("s3cr3t-hunter2", "ss://"),
    "empty": ("", "ss://"),
    "nothing after the scheme": ("ss://", "expected"),
    "no @": ("ss://example.com:8388", "no @"),
    "no host": (f"ss://{URLSAFE}@", "host"),
    "no port": (f"ss://{URLSAFE}@example.com", "port"),
    "port 0": (f"ss://{URLSAFE}@example.com:0", "from 1 to 65535"),
    "port 65536": (f"ss://{URLSAFE}@example.com:65536", "port"),
    "port that is a word": (f"ss://{URLSAFE}@example.com:http", "port"),
    "IPv6 without brackets": (f"ss://{URLSAFE}@2001:db8::1:8388", "expected"),
    "no method": (
        "ss://" + base64.b64encode(b"s3cr3t").decode() + "@example.com:1",
        "no method and password",
    ),
    "not base64": ("ss://!!!s3cr3t!!!@example.com:1", "no method and password"),
    "unknown method": (f"ss://rot13:{quote('s3cr3t')}@example.com:1", "rot13"),
    "empty password": ("ss://aes-256-gcm:@example.com:1", "password"),
    "not UTF-8": ("ss://aes-256-gcm:s3cr3t%ff@example.com:1", "expected"),
    "plugin": (f"ss://{URLSAFE}@example.com:1/?plugin=obfs-local%3Bobfs%3Dhttp", "plugin"),
    "unescaped password": ("ss://aes-256-gcm:a@s3cr3t#x@example.com:1", "expected"),
}


@pytest.mark.parametrize(("uri", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_uri_is_an_error_that_does_not_quote_the_secret(uri: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_uri(uri)
    text = str(caught.value)
    assert reason in text
    assert "server URI" in text
    for secret in ("s3cr3t", URLSAFE, STANDARD, URLSAFE[:10]):
        assert secret not in text
    assert text.count("\n") == 0


@given(st.text(max_size=80))
def test_any_text_is_a_uri_or_a_config_error(text: str) -> None:
    for uri in (text, f"ss://{text}", f"ss://{text}@h:1", f"ss://{URLSAFE}@{text}"):
        try:
            values = parse_uri(uri)
        except ConfigError:
            continue
        assert 1 <= values["server_port"] <= 65535
