"""SIP004 a second time: what the tests compare the tunnel with.

    salt | ( seal(length u16be) | seal(payload) )*        nonce: little-endian counter, from 0

Written from the format's own document with `hmac`, `hashlib` and `cryptography`, whole strings at a
time, and sharing no line with `tunnel/`: two mistakes would have to be the same to go unseen.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

TAG = 16
MAX_PAYLOAD = 0x3FFF
KEY_SIZES = {"aes-128-gcm": 16, "aes-256-gcm": 32, "chacha20-ietf-poly1305": 32}
CIPHERS: dict[str, Callable[[bytes], AESGCM | ChaCha20Poly1305]] = {
    "aes-128-gcm": AESGCM,
    "aes-256-gcm": AESGCM,
    "chacha20-ietf-poly1305": ChaCha20Poly1305,
}
METHOD_NAMES = tuple(KEY_SIZES)


def master_key(password: str, size: int) -> bytes:
    """EVP_BytesToKey: MD5, no salt, one round."""
    blocks = [b""]
    while sum(map(len, blocks)) < size:
        blocks.append(hashlib.md5(blocks[-1] + password.encode()).digest())
    return b"".join(blocks)[:size]


def hkdf_sha1(key: bytes, salt: bytes, size: int) -> bytes:
    """RFC 5869 with the info that Shadowsocks uses."""
    extracted = hmac.digest(salt, key, "sha1")
    block, made, turn = b"", b"", 1
    while len(made) < size:
        block = hmac.digest(extracted, block + b"ss-subkey" + bytes([turn]), "sha1")
        made += block
        turn += 1
    return made[:size]


class Record(NamedTuple):
    """A record as it is cut out of a stream; `end` is the offset behind it."""

    payload: bytes
    end: int


class Wire:
    """One direction's key and method, from the outside."""

    def __init__(self, method: str, key: bytes, salt: bytes) -> None:
        assert len(key) == len(salt) == KEY_SIZES[method]
        self.salt = salt
        self.cipher = CIPHERS[method](hkdf_sha1(key, salt, len(key)))

    def seal(self, counter: int, plain: bytes) -> bytes:
        return self.cipher.encrypt(counter.to_bytes(12, "little"), plain, None)

    def open(self, counter: int, sealed: bytes) -> bytes:
        return self.cipher.decrypt(counter.to_bytes(12, "little"), sealed, None)

    def record(self, counter: int, payload: bytes, length: int | None = None) -> bytes:
        """A record; with a `length` that need not be true."""
        claimed = len(payload) if length is None else length
        return self.seal(counter, claimed.to_bytes(2, "big")) + self.seal(counter + 1, payload)

    def stream(self, payloads: Sequence[bytes]) -> bytes:
        """Salt and one record for each payload."""
        return self.salt + b"".join(self.record(2 * i, payload) for i, payload in enumerate(payloads))


def parse(method: str, key: bytes, stream: bytes) -> list[Record]:
    """The records of a whole stream; fails on anything that the document does not allow."""
    size = KEY_SIZES[method]
    wire = Wire(method, key, stream[:size])
    records: list[Record] = []
    offset = size
    while offset < len(stream):
        length_end = offset + 2 + TAG
        length = int.from_bytes(wire.open(2 * len(records), stream[offset:length_end]), "big")
        assert 1 <= length <= MAX_PAYLOAD, f"a record claims {length} bytes"
        offset = length_end + length + TAG
        records.append(Record(wire.open(2 * len(records) + 1, stream[length_end:offset]), offset))
    assert offset == len(stream), "the stream ends inside a record"
    return records
