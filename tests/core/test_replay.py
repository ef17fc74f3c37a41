"""The memory of salts: each is new once, in all processes and threads, and old ones make room."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tunnel import replay
from tunnel.errors import ConfigError
from tunnel.replay import SaltMemory

SALT_SIZES = (16, 32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[], SaltMemory]:
    """A memory of 64 salts a generation, 16 of them in its front."""
    sizes = {"GENERATION": 64, "LINES": 1 << 10, "FRONT": 16, "FRONT_LINES": 1 << 5}
    for name, value in (sizes | {"SIZE": replay.FIRST + (2 << 10) * 64}).items():
        monkeypatch.setattr(replay, name, value)
    return SaltMemory


@pytest.mark.parametrize("size", SALT_SIZES)
def test_salt_is_new_once(size: int) -> None:
    memory = SaltMemory()
    salts = [os.urandom(size) for _ in range(5000)]
    assert all(memory.add(salt) for salt in salts)
    assert not any(memory.add(salt) for salt in salts)
    assert memory.replays == len(salts)


@pytest.mark.parametrize("bits", [range(64), range(64, 77)])
def test_salts_that_differ_in_one_bit_are_different(bits: range) -> None:
    memory = SaltMemory()
    salt = os.urandom(16)
    assert memory.add(salt)
    for bit in bits:
        other = bytearray(salt)
        other[bit // 8] ^= 1 << bit % 8
        assert memory.add(bytes(other)), bit
    assert not memory.add(salt)


def test_salts_of_one_line_go_on_into_the_next() -> None:
    """A holder of the key may choose its salts; it must not get round the memory by that."""
    memory = SaltMemory()
    crowd = [number.to_bytes(8, "little") + bytes(8) for number in range(1, 200)]
    assert all(memory.add(salt) for salt in crowd)
    assert not any(memory.add(salt) for salt in crowd)


def test_last_line_goes_on_into_the_first(small: Callable[[], SaltMemory]) -> None:
    memory = small()
    rest = replay.LINES - replay.FRONT_LINES
    last = (replay.FRONT_LINES * rest - 1).to_bytes(8, "little")  # of the front, and of the rest
    crowd = [number.to_bytes(8, "little") + last for number in range(1, 40)]
    assert all(memory.add(salt) for salt in crowd)
    assert not any(memory.add(salt) for salt in crowd)


def test_a_generation_at_least_is_known(small: Callable[[], SaltMemory]) -> None:
    memory = small()
    salts = [os.urandom(32) for _ in range(640)]
    for number, salt in enumerate(salts):
        assert memory.add(salt)
        for known in salts[max(0, number - 63) : number + 1]:
            assert not memory.add(known)
    assert memory.add(salts[0]), "and what is older than two makes room"


def test_what_a_file_has_reserved_on_the_disk_stays_reserved(
    small: Callable[..., SaltMemory], tmp_path: Path
) -> None:
    """A page that was given back is a SIGBUS for whoever writes to it once the disk is full."""
    memory = small(str(tmp_path / "salts"))
    reserved = taken(memory)
    assert reserved >= replay.SIZE
    for salt in (os.urandom(16) for _ in range(5 * 64)):
        assert memory.add(salt)
        assert taken(memory) == reserved
    inherited = SaltMemory(fd=os.dup(memory.fileno()))
    for salt in (os.urandom(16) for _ in range(5 * 64)):
        assert inherited.add(salt)
    assert taken(memory) == reserved


def test_file_with_holes_reserves_what_it_lacks(tmp_path: Path) -> None:
    """As a backup may give it back."""
    path = tmp_path / "salts"
    path.write_bytes(replay.MAGIC)
    os.truncate(path, replay.SIZE)
    path.chmod(0o600)
    assert path.stat().st_blocks * 512 < replay.SIZE
    assert taken(SaltMemory(str(path))) >= replay.SIZE


def test_a_generation_is_emptied_in_pieces(
    monkeypatch: pytest.MonkeyPatch, small: Callable[[], SaltMemory]
) -> None:
    """Whatever its size is in pieces: none of its lines is left, and no other one is touched."""
    memory = small()
    monkeypatch.setattr(replay, "PIECE", 24 << 10)
    salts = [os.urandom(16) for _ in range(4 * 64 + 1)]
    assert all(map(memory.add, salts))
    fd, size = memory.fileno(), replay.LINES * replay.LINE.size
    marks = [os.pread(fd, size, replay.FIRST + generation * size) for generation in (0, 1)]
    assert sum(map(bool, (part for (part,) in replay.SLOT.iter_unpack(marks[0])))) == 1
    assert sum(map(bool, (part for (part,) in replay.SLOT.iter_unpack(marks[1])))) == 64


def test_memory_is_made_by_salts_and_not_by_looking_for_them() -> None:
    """A page is made by touching it; each salt is looked for, and written, on one page of its own."""
    memory = SaltMemory()
    pages = {0}
    for number in range(200):
        salt = os.urandom(16)
        assert memory.add(salt)
        assert not memory.add(salt)
        line = int.from_bytes(salt[8:], "little") % replay.FRONT_LINES
        pages.add((replay.FIRST + line * replay.LINE.size) // replay.FIRST)
        assert taken(memory) <= len(pages) * replay.FIRST, number


def test_thousands_of_salts_share_the_pages_of_the_front() -> None:
    memory = SaltMemory()
    front = replay.FIRST + replay.FRONT_LINES * replay.LINE.size
    salts = [os.urandom(16) for _ in range(replay.FRONT)]
    assert all(map(memory.add, salts))
    assert front // 2 < taken(memory) <= front
    assert all(memory.add(os.urandom(16)) for _ in range(100))
    assert taken(memory) > front  # the front is half full, and the rest has begun
    assert not any(map(memory.add, salts))


def taken(memory: SaltMemory) -> int:
    return os.fstat(memory.fileno()).st_blocks * 512


def test_of_processes_that_race_exactly_one_has_it_new() -> None:
    memory = SaltMemory()
    salts = [os.urandom(16) for _ in range(2000)]
    results, tell = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            won = bytes(memory.add(salt) for salt in salts)
            os.write(tell, won)
            os._exit(0)
        children.append(pid)
    wins = [os.read(results, len(salts)) for _ in children]
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    os.close(results)
    os.close(tell)
    assert [sum(won) for won in zip(*wins, strict=True)] == [1] * len(salts)


def test_of_threads_that_race_exactly_one_has_it_new() -> None:
    memory = SaltMemory()
    salts = [os.urandom(16) for _ in range(5000)]
    wins: list[list[bool]] = []
    together = threading.Barrier(4)

    def race() -> None:
        together.wait()
        wins.append([memory.add(salt) for salt in salts])

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(won) for won in zip(*wins, strict=True)] == [1] * len(salts)


def test_process_that_dies_with_the_lock_gives_it_back() -> None:
    memory = SaltMemory()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(memory.fileno(), fcntl.LOCK_EX)
        os.write(tell, b"x")
        signal_forever()
    os.read(ready, 1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(tell)
    assert memory.add(os.urandom(16))


def signal_forever() -> None:
    while True:
        threading.Event().wait()


def test_file_remembers(tmp_path: Path) -> None:
    path = str(tmp_path / "salts")
    salt = os.urandom(32)
    assert SaltMemory(path).add(salt)
    again = SaltMemory(path)
    assert not again.add(salt)
    assert again.replays == 1
    assert SaltMemory(fd=os.dup(again.fileno())).replays == 1


@pytest.mark.parametrize("content", [b"x", bytes(replay.SIZE)])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"other: holds something else: expected a file of --replay-file"):
        SaltMemory(str(path))
    assert path.read_bytes() == content


def test_file_whose_maker_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "salts"
    path.write_bytes(replay.MAGIC)
    path.chmod(0o600)
    assert SaltMemory(str(path)).add(os.urandom(32))
    assert path.stat().st_size == replay.SIZE


def test_memory_is_taken_only_by_what_is_seen() -> None:
    memory = SaltMemory()
    for _ in range(10):
        memory.add(os.urandom(16))
    assert taken(memory) < 64 * 4096
