"""SIP004, written once more and independently of tunnel/: what the tests hold against it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

KEY_SIZES = {"aes-128-gcm": 16, "aes-256-gcm": 32, "chacha20-ietf-poly1305": 32}
TAG = 16
LARGEST_RECORD = 0x3FFF


class WrongTag(Exception):
    """A record that was not sealed with our key."""


class Cut(Exception):
    """The stream ended inside a record."""


class Credentials(NamedTuple):
    """What both ends of a sealed stream know."""

    method: str
    password: str

    @property
    def salt_size(self) -> int:
        return KEY_SIZES[self.method]

    def cipher(self, salt: bytes) -> AESGCM | ChaCha20Poly1305:
        size = KEY_SIZES[self.method]
        master = block = b""
        while len(master) < size:
            block = hashlib.md5(block + self.password.encode()).digest()
            master += block
        extracted = hmac.digest(salt, master[:size], "sha1")
        subkey, block, number = b"", b"", 0
        while len(subkey) < size:
            number += 1
            block = hmac.digest(extracted, block + b"ss-subkey" + bytes([number]), "sha1")
            subkey += block
        kind = ChaCha20Poly1305 if self.method.startswith("chacha20") else AESGCM
        return kind(subkey[:size])


def address_header(host: str, port: int) -> bytes:
    """RFC 1928's address: type, address, port."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode()
        return b"\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")
    return (b"\x01" if literal.version == 4 else b"\x04") + literal.packed + port.to_bytes(2, "big")


def address_size(header: bytes) -> int:
    """How many bytes the address at the start of `header` takes."""
    return {1: 7, 4: 19}.get(header[0], 0) or 4 + header[1]


class Seal:
    """Plaintext to records; the salt goes in front of the first."""

    def __init__(self, credentials: Credentials) -> None:
        self.salt = os.urandom(credentials.salt_size)
        self._cipher = credentials.cipher(self.salt)
        self._count = 0
        self._salt_unsent = self.salt

    def seal(self, plain: bytes | memoryview) -> bytes:
        salt, self._salt_unsent = self._salt_unsent, b""
        starts = range(0, len(plain), LARGEST_RECORD)
        return salt + b"".join(self.record(bytes(plain[start : start + LARGEST_RECORD])) for start in starts)

    def record(self, payload: bytes, length: int | None = None) -> bytes:
        """One record, whose length field may lie."""
        said = len(payload) if length is None else length
        return self._sealed(said.to_bytes(2, "big")) + self._sealed(payload)

    def _sealed(self, piece: bytes) -> bytes:
        nonce = self._count.to_bytes(12, "little")
        self._count += 1
        return self._cipher.encrypt(nonce, piece, None)


class Unseal:
    """Records to plaintext."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._cipher: AESGCM | ChaCha20Poly1305 | None = None
        self._count = 0
        self._held = bytearray()
        self._payload = 0
        self.salt = b""

    def unseal(self, sealed: bytes) -> bytes:
        held = self._held
        held += sealed
        if self._cipher is None:
            size = self._credentials.salt_size
            if len(held) < size:
                return b""
            self.salt = bytes(held[:size])
            self._cipher = self._credentials.cipher(self.salt)
            del held[:size]
        made, start = [], 0
        while True:
            need = (self._payload or 2) + TAG
            if len(held) - start < need:
                break
            piece = self._opened(self._cipher, bytes(held[start : start + need]))
            start += need
            if self._payload:
                made.append(piece)
                self._payload = 0
            else:
                self._payload = int.from_bytes(piece, "big")
                if not 0 < self._payload <= LARGEST_RECORD:
                    raise WrongTag(f"a record says {self._payload} bytes")
        del held[:start]
        return b"".join(made)

    def ended(self) -> None:
        """The stream has ended: raises Cut if that was inside a record."""
        if self._held or self._payload:
            raise Cut

    def _opened(self, cipher: AESGCM | ChaCha20Poly1305, piece: bytes) -> bytes:
        nonce = self._count.to_bytes(12, "little")
        self._count += 1
        try:
            return cipher.decrypt(nonce, piece, None)
        except InvalidTag:
            raise WrongTag from None
