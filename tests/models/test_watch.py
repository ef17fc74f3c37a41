"""A pool's master that waits for descriptors and signals at once: in which order it acts upon them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from threading import get_ident
from types import SimpleNamespace
from typing import Any, cast

import pytest

from models._master import MASTER_SIGNALS
from models._scoreboard import Scoreboard
from models._server import Server, Workers
from models._stop import Renewal, Stop
from models._watch import WatchfulPool


@pytest.fixture
def server() -> Iterator[Server]:
    """As much of one as a pool's master asks; the signals of this process are afterwards as they were."""
    handlers = {number: signal.getsignal(number) for number in MASTER_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
    stop = Stop([], 1.0, Renewal(lambda: True, lambda: None))
    parts: dict[str, Any] = {
        "service": SimpleNamespace(workers=Workers(1, 1)),
        "scoreboard": Scoreboard("prefork-fdpass", "serve"),
        "stop": stop,
    }
    yield cast("Server", SimpleNamespace(**parts))
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_what_has_come_is_passed_on_before_a_signal_is_acted_upon(server: Server) -> None:
    """Both are there at the same poll: acted upon first, SIGTERM would send home who is to take it."""
    order = []

    class Master(WatchfulPool):
        def prepare(self) -> None:
            order.append("pass on")

    reading, writing = os.pipe()
    try:
        master = Master(server)
        master.watch(reading, lambda: order.append("accept"))
        os.write(writing, b"x")
        signal.pthread_kill(get_ident(), signal.SIGTERM)  # blocked until the master waits
        assert master.wait(5.0) == signal.SIGTERM
    finally:
        os.close(reading)
        os.close(writing)
    assert "accept" in order
    assert order[-1] == "pass on"
