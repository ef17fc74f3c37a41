"""What can go wrong, sorted by whose fault it is.

    TunnelError
    |-- ProtocolError     the peer's bytes are not the protocol: drain or reset, never trust
    |   |-- RecordError       a record did not authenticate, or its length is impossible
    |   |-- Replayed          a stream that was sent before
    |   |-- Truncated         the peer stopped inside a record, a salt or a header
    |   `-- HandshakeError    SOCKS or address bytes that cannot be meant
    |-- ModelMissing    a server model that this system cannot run: exit code 69 (EX_UNAVAILABLE)
    `-- ConfigError       the user's file, flag or key: one line, and exit code 78 (EX_CONFIG)

Operating system failures stay `OSError`: they already carry the right words.
"""

from __future__ import annotations


class TunnelError(Exception):
    """Base of everything this package raises on purpose."""


class ProtocolError(TunnelError):
    """The peer sent what the protocol does not allow. Its text never quotes secrets."""

    def again(self) -> ProtocolError:
        """The same without its traceback, for who keeps it: its frames have him, which would be a cycle."""
        return type(self)(*self.args)


class RecordError(ProtocolError):
    """A record failed to authenticate (wrong tag) or carries an impossible length."""


class Replayed(ProtocolError):
    """A whole request that somebody has recorded and sends again."""


class Truncated(ProtocolError):
    """The stream ended inside a salt, a record or a header."""


class HandshakeError(ProtocolError):
    """A SOCKS message or an address header that cannot be meant."""


class ConfigError(TunnelError):
    """A wrong value in a file, a flag, a key or a URI: says which, where, and what was expected."""


class ModelMissing(TunnelError):
    """A server model that this system cannot run: says why, and what would make it run."""
