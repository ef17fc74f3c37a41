"""The format's known answers, through the code that serves connections.

`vectors.json` holds them. An answer that only two functions of this repository agreed on would prove
nothing, so `wire.py` has to give the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.core import wire
from tests.core.feeding import SECRETS, passed
from tunnel.aead import Opener, Sealer
from tunnel.keys import METHODS, Secret, password_to_key

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("vectors.json").read_text("ascii"))


def answers(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "vector", VECTORS[name], ids=lambda vector: str(vector.get("method") or vector["size"])
    )


class Fixed(Secret):
    """A Secret whose subkey is given: the salt does not matter."""

    __slots__ = ("_subkey",)

    def __init__(self, method: str, subkey: bytes) -> None:
        super().__init__(METHODS[method], subkey)
        self._subkey = subkey

    def subkey(self, salt: object) -> bytes:  # noqa: ARG002
        return self._subkey


@answers("password_to_key")
def test_a_password_gives_the_key_that_openssl_derives(vector: dict[str, Any]) -> None:
    assert password_to_key(vector["password_text"], vector["size"]).hex() == vector["key"]
    assert wire.master_key(vector["password_text"], vector["size"]).hex() == vector["key"]


@answers("subkey")
def test_key_and_salt_give_the_subkey(vector: dict[str, Any]) -> None:
    key, salt = bytes.fromhex(vector["key"]), vector["salt_text"].encode()
    assert Secret(METHODS[vector["method"]], key).subkey(salt).hex() == vector["subkey"]
    assert wire.hkdf_sha1(key, salt, len(key)).hex() == vector["subkey"]


@answers("first_seal")
def test_the_first_nonce_is_zero(vector: dict[str, Any]) -> None:
    plain = vector["plain_text"].encode()
    sealed = bytearray(len(plain) + wire.TAG)
    cipher = Fixed(vector["method"], bytes.fromhex(vector["subkey"])).cipher(b"")
    cipher.encrypt_into(bytes(12), plain, None, sealed)
    assert sealed.hex() == vector["sealed"]


@answers("first_seal")
def test_an_opener_opens_the_first_seal(vector: dict[str, Any]) -> None:
    opener = Opener(Fixed(vector["method"], bytes.fromhex(vector["subkey"])))
    assert passed(opener, bytes(METHODS[vector["method"]].salt_size)) == b""
    opener._length = len(vector["plain_text"])  # the vector has no sealed length before it
    assert passed(opener, bytes.fromhex(vector["sealed"])) == vector["plain_text"].encode()


@answers("first_seal")
def test_a_sealer_seals_its_first_length_with_the_first_nonce(vector: dict[str, Any]) -> None:
    """The vector's keystream is that of nonce 0: its first two bytes hide the length as they hide `he`."""
    sealer = Sealer(Fixed(vector["method"], bytes.fromhex(vector["subkey"])))
    length = passed(sealer, bytes(0x234))[METHODS[vector["method"]].salt_size :][:2]
    keystream = [a ^ b for a, b in zip(bytes.fromhex(vector["sealed"]), b"he", strict=False)]
    assert bytes(a ^ b for a, b in zip(length, keystream, strict=True)) == b"\x02\x34"


@answers("stream")
def test_a_stream_is_sealed_byte_for_byte(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    salt = vector["salt_text"].encode()
    monkeypatch.setattr("os.urandom", lambda size: salt[:size])
    sealer = Sealer(SECRETS[vector["method"]])
    sealed = b"".join(passed(sealer, text.encode()) for text in vector["payload_texts"])
    assert sealed.hex() == vector["sealed"]


@answers("stream")
def test_a_stream_is_opened(vector: dict[str, Any]) -> None:
    opener = Opener(SECRETS[vector["method"]])
    assert passed(opener, bytes.fromhex(vector["sealed"])) == "".join(vector["payload_texts"]).encode()
    assert not opener.eof()


@answers("stream")
def test_the_independent_codec_agrees(vector: dict[str, Any]) -> None:
    key = wire.master_key(vector["password_text"], wire.KEY_SIZES[vector["method"]])
    records = wire.parse(vector["method"], key, bytes.fromhex(vector["sealed"]))
    assert [record.payload.decode() for record in records] == vector["payload_texts"]
