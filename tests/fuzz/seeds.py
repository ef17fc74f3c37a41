"""The first inputs of each harness: streams that are whole, and what users write when all is well.

    python -m tests.fuzz.seeds      writes corpus/NAME/seed-*

Sealed by tests/core/wire, for all three methods, so that a fuzzer begins behind the tags and not in front
of them. What libFuzzer has found since lies beside them, minimised (docs/fuzzing.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.core import wire
from tests.core.test_records import KEYS, pattern
from tunnel.address import Address, pack
from tunnel.config import format_uri, parse_address

CORPUS = Path(__file__).parent / "corpus"
TARGETS = [Address("192.0.2.7", 25), Address("2001:db8::7", 443), Address("example.com", 80)]
CONVERSATION = bytes([0, 0, 1, 1, 2, 9, 3, 9, 0, 1, 1, 0, 4, 2, 40, 0, 1, 3, 40, 1, 0])  # machines.Talk


def seeds() -> Iterator[tuple[str, bytes]]:
    """A harness's name and an input for it."""
    for place, method in enumerate(wire.METHOD_NAMES):
        chosen = bytes([place])
        salt = bytes(range(wire.KEY_SIZES[method]))
        other = wire.Wire(method, KEYS[method], salt)
        for plan in (bytes([0, 16, 0]), bytes([2, 0, 5, 20, 1])):
            yield "opener", chosen + plan + other.stream([b"hello", pattern(300), b"x"])
            yield "opener", chosen + plan + other.stream([b"good"]) + other.seal(2, b"\x40\0")
            yield "opener", chosen + plan + other.stream([pattern(40)])[:-1]
            yield "header", chosen + plan + bytes([1, 0, 2]) + b"\3\3a\xff\xfe\0\x50"
            for target in TARGETS:
                yield "header", chosen + plan + bytes([1, 0, 2]) + pack(target) + b"first payload"
        yield "records", chosen + b"\x03abc" + bytes([0, 40, 1, 4, 0, 14, 4, 1, 16, 5, 1, 16, 3, 2])
        yield "records", chosen + b"\x00" + bytes([0, 40, 6, 0, 30, 1, 1, 16])
        for kind in (0, 1, 6, 8 + 32, 8 + 16 + 1):
            yield "sessions", chosen + bytes([kind, 1, 16, 0]) + CONVERSATION
        yield "sessions", chosen + bytes([1, 0, 5]) + CONVERSATION + bytes([7, 1, 0, 9, 1])
        for host in ("192.0.2.1", "2001:db8::1", "example.com"):
            yield "uri", format_uri(method, "ünï:code@", Address(host, 8388)).encode()
        yield "uri", f"ss://{method}:p%40ss@[::1]:443/?plugin=#tag".encode()
    for target in TARGETS:
        for cuts in (b"\0\0", b"\4\1\2\3\5\x0c"):
            yield "socks", cuts + b"\5\1\0\5\1\0" + pack(target) + b"GET / HTTP/1.1\r\n\r\n"
    yield "socks", b"\0\0\5\1\2\5\1\0"
    yield "socks", b"\0\0\5\1\0\5\3\0\1\x7f\0\0\1\0\x50"
    for literal in (
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:4860:4860::8888",
        "fd00::1",
    ):
        for opened in (b"", b"10.0.0.0/8", b"fd00::/8", b"127.0.0.1"):
            yield "judge", pack(parse_address(f"[{literal}]:1"))[1:17] + opened
    for content in (
        {"server": "::", "server_port": 8388, "password": "x", "method": "aes-256-gcm", "timeout": 300},
        {"server": ["::1", "h"], "local_port": 1080, "password": "x", "mode": "tcp_only", "no_delay": True},
        {"server": "h", "key": "AAECAwQFBgcICQoLDA0ODw==", "method": "aes-128-gcm", "plugin": ""},
        {"listen": ["[::1]:80"], "target": "h:80", "workers": "2:8", "allow": "10.0.0.0/8", "model": "fork"},
        {"log_level": "debug", "grace": 0.5, "heartbeat": 30, "nofile": 1024, "unknown": [None, {}]},
    ):
        yield "config", json.dumps(content).encode()
    for line in (
        "serve --model=fork --listen=[::]:80 --workers 2:8 --allow 10.0.0.0/8 --grace 1",
        "local --server ss://YWVzLTEyOC1nY206eA@[::1]:8388 --timeout 5",
        "forward --server ss://YWVzLTEyOC1nY206eA@h:1 --target example.com:443 --relay threads",
        "serve --service relay --target 127.0.0.1:9 --log-level debug --log-format json",
        "status --port 80 --json",
        "completion bash",
    ):
        yield "flags", line.replace(" ", "\n").encode()


def write(corpus: Path = CORPUS) -> None:
    for number, (name, content) in enumerate(seeds()):
        folder = corpus / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{number:02}").write_bytes(content)


if __name__ == "__main__":
    write()
