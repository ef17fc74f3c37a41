"""The book's own services, as Sessions: the same models run them, and nothing is encrypted.

    echo     what comes goes back                                   UNP 5.2
    bytes    a line with a number is answered by that many bytes    UNP 30.3, the server that chapter measures
    relay    to one target and back, as it is                       the baseline for the tunnel

A Session whose opening answers its peer and never names a target is a service. One that names its
target at once and whose flows change nothing is a relay.
"""

from __future__ import annotations

from collections.abc import Callable

from tunnel.address import Address
from tunnel.errors import HandshakeError, Truncated
from tunnel.flow import EMPTY, Flow, Opening
from tunnel.session import Session

MOST_BYTES = 1024 * 1024  # that one line may ask for
MOST_AT_ONCE = 16 * MOST_BYTES  # that the lines of one read may ask for together
LONGEST_LINE = 16  # bytes
REHEARSAL = b"1\n", b"x"  # what both sides of a connection could say (models/_rehearsal.py tells why)
REPLY = memoryview(bytes(range(256)) * (MOST_BYTES // 256))


class Plain(Flow):
    """Bytes as they are: the input buffer is the output, so it grows only once all has been sent."""

    __slots__ = ("_n",)

    def __init__(self) -> None:
        super().__init__()
        self._n = 0  # bytes of the last read

    def get_buffer(self) -> memoryview:
        if self._in is not None:
            self._keep(self._in, self._n, self._n, self._n)
        return super().get_buffer()

    def buffer_updated(self, n: int) -> memoryview:
        self._n = n
        return self._in[:n] if self._in is not None else EMPTY


class Echo(Opening):
    """Returns what it gets."""

    __slots__ = ("_plain",)

    def __init__(self) -> None:
        super().__init__()
        self._plain = Plain()

    def get_buffer(self) -> memoryview:
        return self._plain.get_buffer()

    def buffer_updated(self, n: int) -> memoryview:
        return self._plain.buffer_updated(n)

    def release(self) -> None:
        self._plain.release()


class Bytes(Opening):
    """Answers each line. Raises HandshakeError for one that is no number up to MOST_BYTES.

    What came before a bad line is answered all the same, however it was cut into segments; the error
    then waits for the next call.
    """

    __slots__ = ("_text",)

    def __init__(self) -> None:
        super().__init__()
        self._text = b""  # not answered yet

    def buffer_updated(self, n: int) -> memoryview:
        if self._in is not None:
            self._text += self._in[:n]
        answers: list[memoryview] = []
        while b"\n" in self._text or len(self._text) > LONGEST_LINE:
            line, _, rest = self._text.partition(b"\n")
            if not (line.strip().isdigit() and int(line) <= MOST_BYTES):
                if answers:
                    break
                raise HandshakeError(
                    f"line {line[:LONGEST_LINE]!r}: expected a number from 0 to {MOST_BYTES}"
                )
            answers.append(REPLY[: int(line)])
            self._text = rest
        if sum(map(len, answers)) > MOST_AT_ONCE:
            raise HandshakeError(f"more than {MOST_AT_ONCE} bytes asked for at once")
        return answers[0] if len(answers) == 1 else memoryview(b"".join(answers))

    def eof(self) -> memoryview:
        if self._text:
            self.buffer_updated(0)
            raise Truncated("stream ended inside a line")
        return EMPTY


class Service(Session):
    """A Session that is all opening."""

    __slots__ = ()
    dials = False

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.up = self.down = opening


class RelaySession(Session):
    """Accepted to one target and back, as it is."""

    __slots__ = ()

    def __init__(self, target: Address) -> None:
        self.opening = Opening(target)
        self.up = Plain()
        self.down = Plain()


def service_factory(name: str, target: Address | None) -> Callable[[], Session]:
    """What makes the Session of each connection to the service of that name."""
    if name == "echo":
        return lambda: Service(Echo())
    if name == "bytes":
        return lambda: Service(Bytes())
    assert target is not None
    return lambda: RelaySession(target)
