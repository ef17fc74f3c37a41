"""Thousands of connections that say nothing: what each of them costs, and whom they disturb.

pytest tests/conformance/test_idle.py -m slow      prints the memory of each connection
"""

from __future__ import annotations

import resource
import time

import pytest

from models import MODELS
from tests.conformance.conftest import MakeRig
from tests.harness.rig import SERVE
from tests.harness.services import Service
from tests.harness.stream import exchange
from tests.harness.tree import cpu_seconds, memory

IDLE = 5000  # connections
# Of the server's own memory, at most: two sockets and two flows, and with asyncio two transports as well.
KB_EACH = {"poll": 6.0, "epoll": 6.0, "asyncio": 13.0, "uvloop": 13.0}
MIB, ANSWERS = 1024 * 1024, 12  # more than the sockets of a connection hold between them
RATE = 5 * MIB  # bytes a second that the slow client takes; a socket has room again after a megabyte or two
OWN = 200  # descriptors that the test and the server have anyway


@pytest.mark.only(*KB_EACH)
@pytest.mark.ends(SERVE)
@pytest.mark.slow
def test_5000_idle_connections_cost_little_and_disturb_nobody(
    make_rig: MakeRig, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := MODELS[model].missing():
        pytest.skip(missing)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE + OWN:
        pytest.skip(f"{hard} descriptors are all that a process may have here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        rig = make_rig()
        before = memory(rig.pid)
        pairs = [rig.open() for _ in range(IDLE)]
        each = (memory(rig.pid) - before) / 1000 / IDLE
        spent = cpu_seconds(rig.pid)
        rig.idles(1.0, part=0.05)  # poll(2) looks at each of them when its loop wakes, once a second
        spent = cpu_seconds(rig.pid) - spent
        with capsys.disabled():
            print(f"\n{model}: {IDLE} idle connections, {each:.2f} KB each, {spent:.2f} s of CPU in a second")
        for near, far in (pairs[0], pairs[-1]):
            exchange(near, far, 100_000)
        rig.transfer()
        for near, far in pairs[::2]:
            near.close()
            far.close()
        rig.is_healthy()
        assert each < KB_EACH[model]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.only("select", "poll", "epoll")
def test_service_client_that_takes_its_answer_slowly_is_not_idle(model: str) -> None:
    service = Service(model, "bytes", "--timeout", "1")
    try:
        client = service.connect(receive_buffer=8192)
        client.send(b"%d\n" % MIB * ANSWERS)
        received = 0
        while part := client.receive():
            received += len(part)
            time.sleep(len(part) / RATE)  # the slowness is the subject
            if received == ANSWERS * MIB:
                break
        assert received == ANSWERS * MIB
    finally:
        service.close()
