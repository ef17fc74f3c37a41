"""SIP004 records, one direction at a time.

      salt            record                              record
    +---------+-------------------------------------+-------------- - -
    | 16 | 32 | length 2 | tag 16 | payload | tag 16 | length 2 | tag ...
    +---------+-------------------------------------+-------------- - -
              `- sealed, nonce 0 -' `- nonce 1 -----' `- nonce 2 ...

    length: u16 big-endian, 1 to 0x3FFF         nonce: 12 bytes, little-endian, from 0
    key: HKDF-SHA1(master key, salt)            no associated data

`Sealer` turns plaintext into this, `Opener` turns this into plaintext. Both work on whole buffers:
one read holds many records, they are sealed or opened back to back into one output buffer, and one
write sends them all. Nothing is copied in Python but the part of a record that a read cut off.

Rules:
- An opener hands on what has authenticated, and nothing after the first byte that has not.
- A nonce is used once. The counter is a Python integer: it does not wrap (96 bits, 2^95 records).
- A salt is asked about, and remembered, once the first payload has authenticated: who does not have the
  key cannot fill the memory, nor learn what is in it. Nothing of a stream that came before is handed on.
- After an error the flow is dead; it raises the same error again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from tunnel.buffers import LARGEST, MAX_PAYLOAD, SIZES
from tunnel.errors import ProtocolError, RecordError, Replayed, Truncated
from tunnel.flow import EMPTY, Flow
from tunnel.keys import NONCE_SIZE, TAG_SIZE, Aead, Secret

LENGTH_SIZE = 2 + TAG_SIZE  # bytes of a sealed length


class Sealer(Flow):
    """Plaintext in, salt and records out.

    `head` is plaintext that goes in front of the first payload, in the same record: the address
    header of a client. The salt leaves with the first bytes that have something to say.
    """

    __slots__ = ("_cipher", "_counter", "_remember", "_secret")

    def __init__(
        self, secret: Secret, head: bytes = b"", remember: Callable[[bytes], object] | None = None
    ) -> None:
        """`remember` is told the salt."""
        super().__init__()
        self._secret = secret
        self._remember = remember
        self._cipher: Aead | None = None
        self._counter = 0
        if head:
            self.prepend(head)

    def prepend(self, head: bytes) -> None:
        """Puts `head` before whatever comes next. Only before the first `get_buffer`."""
        self._rest += head
        self._filled = len(self._rest)
        while self._filled >= SIZES[self._in_class] and self._in_class < LARGEST:
            self._in_class += 1

    def buffer_updated(self, n: int) -> memoryview:
        if self._in is None:
            self.get_buffer()
        plain = self._in
        assert plain is not None
        total = self._filled + n
        if not total:
            return EMPTY
        out = self._output()
        cipher, made = self._cipher, 0
        if cipher is None:
            made = self._secret.method.salt_size
            out[:made] = salt = os.urandom(made)
            cipher = self._cipher = self._secret.cipher(salt)
            if self._remember is not None:
                self._remember(salt)
        encrypt, counter = cipher.encrypt_into, self._counter
        for start in range(0, total, MAX_PAYLOAD):
            size = min(MAX_PAYLOAD, total - start)
            body = made + LENGTH_SIZE
            end = body + size + TAG_SIZE
            encrypt(counter.to_bytes(NONCE_SIZE, "little"), size.to_bytes(2, "big"), None, out[made:body])
            encrypt(
                (counter + 1).to_bytes(NONCE_SIZE, "little"),
                plain[start : start + size],
                None,
                out[body:end],
            )
            counter += 2
            made = end
        self._counter = counter
        self._keep(plain, total, total, n)
        return out[:made]

    def eof(self) -> memoryview:
        """A head that found no payload to travel with; SIP004 marks the end by the FIN alone."""
        return self.buffer_updated(0)


class Opener(Flow):
    """Salt and records in, plaintext out."""

    __slots__ = (
        "_cipher",
        "_counter",
        "_error",
        "_fresh",
        "_held",
        "_length",
        "_length_view",
        "_salt",
        "_secret",
    )

    def __init__(self, secret: Secret, fresh: Callable[[bytes], bool] | None = None) -> None:
        """`fresh(salt)` remembers a salt and says whether it is new (tunnel/replay.py)."""
        super().__init__()
        self._secret = secret
        self._fresh = fresh  # until it has been asked
        self._cipher: Aead | None = None
        self._counter = 0
        self._length = 0  # of the payload that comes next; 0: a length comes next
        self._length_view = bytearray(2)
        self._error: ProtocolError | None = None
        self._held = EMPTY
        self._salt = b""  # once it has come

    def hold(self, plain: memoryview) -> None:
        """Gives back plaintext that was taken too early; `buffer_updated(0)` returns it again."""
        self._held = plain

    def buffer_updated(self, n: int) -> memoryview:
        if self._error:
            raise self._error.again()
        sealed = self._in
        if sealed is None or not n:
            held, self._held = self._held, EMPTY
            return held
        end, start = self._filled + n, 0
        cipher = self._cipher
        if cipher is None:
            start = self._secret.method.salt_size
            if end < start:
                self._filled = end
                return EMPTY
            self._salt = bytes(sealed[:start])
            cipher = self._cipher = self._secret.cipher(self._salt)
        try:
            start, made = self._open(cipher, sealed, start, end)
            if made and self._fresh is not None:
                fresh, self._fresh = self._fresh, None
                if not fresh(self._salt):
                    raise Replayed("salt has been seen before")
        except ProtocolError as error:
            self._error = error.again()
            raise
        out = self._out
        self._keep(sealed, start, end, n)
        return out[:made] if out is not None and made else EMPTY

    def _open(self, cipher: Aead, sealed: memoryview, start: int, end: int) -> tuple[int, int]:
        """Opens the whole records in sealed[start:end]; returns where it stopped, and bytes made."""
        decrypt, counter, length = cipher.decrypt_into, self._counter, self._length
        length_view, made = self._length_view, 0
        out = self._output()
        try:
            while True:
                if not length:
                    body = start + LENGTH_SIZE
                    if body > end:
                        break
                    nonce = counter.to_bytes(NONCE_SIZE, "little")
                    decrypt(nonce, sealed[start:body], None, length_view)
                    counter += 1
                    start = body
                    length = length_view[0] << 8 | length_view[1]
                    if not 0 < length <= MAX_PAYLOAD:
                        raise RecordError(
                            f"record {counter // 2} says {length} bytes: expected 1 to {MAX_PAYLOAD}"
                        )
                body = start + length + TAG_SIZE
                if body > end:
                    break
                nonce = counter.to_bytes(NONCE_SIZE, "little")
                decrypt(nonce, sealed[start:body], None, out[made : made + length])
                counter += 1
                start = body
                made += length
                length = 0
        except InvalidTag:
            part = "payload" if length else "length"
            raise RecordError(f"wrong tag on the {part} of record {counter // 2}") from None
        self._counter, self._length = counter, length
        return start, made

    def eof(self) -> memoryview:
        """Raises Truncated if the stream ended inside its salt or a record."""
        if self._error:
            raise self._error.again()
        if self._filled or self._length:
            where = f"record {self._counter // 2}" if self._cipher else "the salt"
            raise Truncated(f"stream ended inside {where}")
        return EMPTY

    def release(self) -> None:
        if self._held:
            self._held = memoryview(bytes(self._held))
        super().release()
