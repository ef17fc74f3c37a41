"""Methods, and the way from a password to the key of one direction.

    password --EVP_BytesToKey(MD5)--> master key            once, at start
    master key + salt --HKDF-SHA1("ss-subkey")--> subkey    once per direction
    subkey --> AEAD cipher                                  seals or opens every record

Rules: a key is never printed (`Secret` hides it), and a method is known by the name that
shadowsocks-libev, -rust and go-shadowsocks2 share.
Sources: Shadowsocks AEAD (SIP004); OpenSSL EVP_BytesToKey(3); RFC 5869 (HKDF).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tunnel.errors import ConfigError

Buffer = bytes | bytearray | memoryview

TAG_SIZE = 16  # bytes, all three methods
SHA1 = hashes.SHA1()  # noqa: S303 - inside HKDF, as the wire format asks
NONCE_SIZE = 12  # bytes, a little-endian counter


class Aead(Protocol):
    """The two calls that every record passes through. Both return the bytes written."""

    def encrypt_into(self, nonce: bytes, data: Buffer, associated_data: None, buf: Buffer) -> int: ...

    def decrypt_into(self, nonce: bytes, data: Buffer, associated_data: None, buf: Buffer) -> int: ...


class Method(NamedTuple):
    """An AEAD method: its name on the wire's two ends, and the size of its key and salt (bytes)."""

    name: str
    key_size: int
    aead: type[AESGCM] | type[ChaCha20Poly1305]

    @property
    def salt_size(self) -> int:
        """SIP004: the salt is as long as the key."""
        return self.key_size


METHODS = {
    method.name: method
    for method in (
        Method("aes-128-gcm", 16, AESGCM),
        Method("aes-256-gcm", 32, AESGCM),
        Method("chacha20-ietf-poly1305", 32, ChaCha20Poly1305),
    )
}
DEFAULT_METHOD = "aes-256-gcm"


def find_method(name: str) -> Method:
    """The method of that name; raises ConfigError that names the nearest one."""
    try:
        return METHODS[name]
    except KeyError:
        from difflib import get_close_matches  # noqa: PLC0415 - most servers never make this mistake

        close = get_close_matches(name, METHODS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"method {name!r} does not exist: {hint}expected one of {', '.join(METHODS)}"
        ) from None


def password_to_key(password: str, size: int) -> bytes:
    """The master key of `size` bytes: EVP_BytesToKey with MD5, no salt, one round."""
    key = block = b""
    while len(key) < size:
        digest = hashes.Hash(hashes.MD5())  # noqa: S303 - the wire format asks for it
        digest.update(block + password.encode())
        block = digest.finalize()
        key += block
    return key[:size]


class Secret:
    """A method and its master key: all that two ends must share. Its repr shows no key.

    Raises ConfigError for an empty password, or a key of the wrong length.
    """

    __slots__ = ("_key", "method")

    def __init__(self, method: Method, key: bytes) -> None:
        if len(key) != method.key_size:
            raise ConfigError(f"key for {method.name} is {len(key)} bytes long: expected {method.key_size}")
        self.method = method
        self._key = key

    @classmethod
    def from_password(cls, method: Method, password: str) -> Secret:
        """A Secret as every Shadowsocks implementation derives it from the same password."""
        if not password:
            raise ConfigError("password is empty: expected at least one character")
        return cls(method, password_to_key(password, method.key_size))

    def subkey(self, salt: Buffer) -> bytes:
        """The session subkey: HKDF-SHA1(master key, salt, "ss-subkey"), as long as the key."""
        return HKDF(SHA1, self.method.key_size, bytes(salt), b"ss-subkey").derive(self._key)

    def cipher(self, salt: Buffer) -> Aead:
        """The AEAD of one direction, keyed for `salt`."""
        return self.method.aead(self.subkey(salt))

    def __repr__(self) -> str:
        return f"Secret({self.method.name}, key hidden)"
