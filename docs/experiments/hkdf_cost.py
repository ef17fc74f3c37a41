"""Three ways to a session's key (HKDF-SHA1, RFC 5869): what one derivation costs.

    python docs/experiments/hkdf_cost.py

The best of several rounds, CPU microseconds each. All must give the same key. Printed in docs/performance.md.
"""

from __future__ import annotations

import hmac
import os
import time
import timeit
from collections.abc import Callable
from hashlib import sha1

from tunnel.keys import METHODS, Secret

ROUNDS, TIMES = 7, 5000
INFO = b"ss-subkey"
BLOCK = 64  # bytes, of SHA-1
INNER, OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
KEY, SALT = os.urandom(32), os.urandom(32)
SECRET = Secret(METHODS["aes-256-gcm"], KEY)


def by_digest() -> bytes:
    """OpenSSL's HMAC in one call, through the module hmac."""
    extracted = hmac.digest(SALT, KEY, "sha1")
    first = hmac.digest(extracted, INFO + b"\1", "sha1")
    return (first + hmac.digest(extracted, first + INFO + b"\2", "sha1"))[:32]


def by_pads() -> bytes:
    """Six SHA-1 of hashlib, with the pads of HMAC made by hand, once for both halves of the key."""
    salt = SALT.ljust(BLOCK, b"\0")
    extracted = sha1(salt.translate(OUTER) + sha1(salt.translate(INNER) + KEY).digest()).digest()  # noqa: S324
    inner, outer = (extracted.ljust(BLOCK, b"\0").translate(pad) for pad in (INNER, OUTER))
    first = sha1(outer + sha1(inner + INFO + b"\1").digest()).digest()  # noqa: S324
    second = sha1(outer + sha1(inner + first + INFO + b"\2").digest()).digest()  # noqa: S324
    return (first + second)[:32]


WAYS: dict[str, Callable[[], bytes]] = {
    "cryptography's HKDF": lambda: SECRET.subkey(SALT),
    "hashlib, pads by hand": by_pads,
    "hmac.digest": by_digest,
}


def main() -> None:
    assert len({way() for way in WAYS.values()}) == 1
    for name, way in WAYS.items():
        best = min(timeit.repeat(way, timer=time.process_time, number=TIMES, repeat=ROUNDS))
        print(f"{name:24}{best / TIMES * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
