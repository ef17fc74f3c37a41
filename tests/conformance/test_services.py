"""The book's own services, which every model runs as it runs the tunnel: no key, nothing encrypted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.conftest import pool_of
from tests.harness.places import closed_place
from tests.harness.services import Service
from tests.harness.stream import CHUNK, Stream, Task, exchange, pattern, send_and_finish, sha256
from tests.harness.tree import cpu_seconds, memory

MB = 1_000_000
MIB = 1024 * 1024
GROWTH_AT_MOST = 8 * MB
MakeService = Callable[..., Service]
UNP_BYTES = bytes(range(256)) * (MIB // 256)  # what any answer of `bytes` is a beginning of


@pytest.fixture
def serve(model: str) -> Iterator[MakeService]:
    made: list[Service] = []

    def make(name: str, *arguments: str) -> Service:
        made.append(Service(model, name, *pool_of(model, 3), *arguments))
        return made[-1]

    yield make
    for service in made:
        log = service.log()
        print(log)  # shown with a failure
        service.close()
        assert "Traceback" not in log, log


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def relay_to(target: socket.socket) -> list[str]:
    host, port = target.getsockname()
    return ["--target", f"{host}:{port}"]


# echo (UNP 5.2)


def test_echo_of_ten_megabytes_comes_back_whole_and_then_the_fin(serve: MakeService) -> None:
    client = serve("echo").connect()
    content = pattern(10 * MB)
    sending = Task(lambda: send_and_finish(client, content))
    assert sha256(client.receive_all()) == sha256(content)
    sending.result()


def test_echo_of_single_bytes_and_of_clients_after_one_another(serve: MakeService) -> None:
    service = serve("echo")
    for _ in range(3):
        client = service.connect()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in pattern(100):
            client.send(bytes([byte]))
            assert client.receive_exactly(1) == bytes([byte])
        client.finish()
        assert client.receive_all() == b""
        client.close()


@pytest.mark.costly
def test_echo_to_a_client_that_does_not_read_waits_in_bounded_memory(serve: MakeService) -> None:
    service = serve("echo")
    client = service.connect(receive_buffer=8192)
    client.send(b"x" * MB)  # its buffers have grown, as far as they will
    assert client.receive_exactly(MB) == b"x" * MB
    before = memory(service.pid)
    block = pattern(CHUNK)
    pushed = client.push(block, 1000 * MB, 0.2)
    assert pushed < 100 * MB, "the client was never stalled"
    assert memory(service.pid) - before < GROWTH_AT_MOST
    used = cpu_seconds(service.pid)
    time.sleep(0.2)  # nobody reads, so nothing may happen
    assert cpu_seconds(service.pid) - used < 0.06

    def finish() -> None:
        client.flush()
        client.finish()

    finishing = Task(finish)
    assert client.receive_all() == block * (pushed // CHUNK)
    finishing.result()


def test_echo_to_a_client_that_never_reads_is_cut_by_the_idle_time(serve: MakeService) -> None:
    service = serve("echo", "--timeout", "0.4")
    client = service.connect(receive_buffer=8192)
    client.push(pattern(CHUNK), 1000 * MB, 0.1)
    service.wait_for_lines("nothing moved|no whole request", within=4.0)
    assert client.ends_after_data()[1] in ("FIN", "RST")


def test_echo_to_a_silent_client_is_ended_by_the_idle_time(serve: MakeService) -> None:
    client = serve("echo", "--timeout", "0.4", "--handshake-timeout", "30").connect()
    client.send(b"x")
    assert client.receive_exactly(1) == b"x"
    started = time.monotonic()
    assert client.how_it_ends(3.0) in ("FIN", "RST")
    assert time.monotonic() - started > 0.3


def test_echo_is_not_ended_while_it_is_used(serve: MakeService) -> None:
    """The deadline of a handshake is for those who ask for a target; a service has none."""
    client = serve("echo", "--timeout", "2", "--handshake-timeout", "0.3").connect()
    assert client.how_it_ends(1.5) == "open"
    client.send(b"still here")
    assert client.receive_exactly(10) == b"still here"


# bytes (UNP 30.3)


def test_bytes_answers_each_line_by_that_many(serve: MakeService) -> None:
    client = serve("bytes").connect()
    for number in (0, 1, 4000, 4096, 70_000, MIB):
        client.send(b"%d\n" % number)
        assert client.receive_exactly(number) == UNP_BYTES[:number]
    client.finish()
    assert client.receive_all() == b""


def test_bytes_answers_lines_of_one_segment_and_a_line_of_many(serve: MakeService) -> None:
    client = serve("bytes").connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.send(b"3\n1048576\n2\n40")
    client.send(b"0")
    client.send(b"0\r\n")
    client.finish()
    expected = [UNP_BYTES[:number] for number in (3, MIB, 2, 4000)]
    assert sha256(client.receive_all()) == sha256(b"".join(expected))


@pytest.mark.parametrize("line", [b"many\n", b"-1\n", b"1048577\n", b"\n", b"1" * 40], ids=repr)
def test_bytes_drains_a_client_whose_line_is_no_number(serve: MakeService, line: bytes) -> None:
    service = serve("bytes")
    client = service.connect()
    client.send(line)
    service.wait_for_lines("handshake failed: line .*expected a number from 0 to 1048576")
    client.send(b"more of it")
    assert client.how_it_ends(0.1) == "open"
    client.finish()
    assert client.how_it_ends(2.0) == "FIN"


def test_bytes_answers_what_came_before_a_bad_line(serve: MakeService) -> None:
    service = serve("bytes")
    client = service.connect()
    client.send(b"4\nmany\n")
    assert client.receive_exactly(4) == UNP_BYTES[:4]
    client.finish()
    assert client.receive_all() == b""
    service.wait_for_lines("handshake failed: line b'many'")


def test_bytes_that_a_client_does_not_want_to_receive_are_bounded(serve: MakeService) -> None:
    service = serve("bytes")
    client = service.connect()
    before = memory(service.pid)
    client.send(b"1048576\n" * 400)
    service.wait_for_lines("handshake failed: more than 16777216 bytes")
    assert memory(service.pid) - before < 24 * MIB


# relay, the baseline


def through(service: Service, target: socket.socket) -> tuple[Stream, Stream]:
    near = service.connect()
    return near, Stream(target.accept()[0])


def test_relay_is_exact_both_ways(serve: MakeService, target: socket.socket) -> None:
    service = serve("relay", *relay_to(target))
    for size in (0, 1, 6 * MB):
        near, far = through(service, target)
        exchange(near, far, size)
        near.close()
        far.close()


@pytest.mark.parametrize("first", ["client", "target"])
def test_relay_is_half_closed_in_either_order(serve: MakeService, target: socket.socket, first: str) -> None:
    near, far = through(serve("relay", *relay_to(target)), target)
    early, late = (near, far) if first == "client" else (far, near)
    early.send(b"all I have")
    early.finish()
    assert late.receive_all() == b"all I have"
    sending = Task(lambda: send_and_finish(late, pattern(3 * MB)))
    assert sha256(early.receive_all()) == sha256(pattern(3 * MB))
    sending.result()
    near.close()
    far.close()


def test_relay_passes_a_reset_on(serve: MakeService, target: socket.socket) -> None:
    near, far = through(serve("relay", *relay_to(target)), target)
    near.send(b"ping")
    assert far.receive_exactly(4) == b"ping"
    near.reset()
    assert far.how_it_ends(1.0) == "RST"
    far.close()


def test_relay_to_nobody_ends_the_client(serve: MakeService) -> None:
    host, port = closed_place()
    service = serve("relay", "--target", f"{host}:{port}")
    assert service.connect().how_it_ends(2.0) in ("FIN", "RST")
    service.wait_for_lines(f"cannot connect to {host}:{port}: Connection refused")


# all of them


def test_stop_ends_a_service(serve: MakeService) -> None:
    service = serve("echo")
    client = service.connect()
    client.send(b"x")
    assert client.receive_exactly(1) == b"x"
    service.terminate()
    assert service.wait(3.0) == 0, "its client may finish, but need not leave"
