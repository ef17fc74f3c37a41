"""What keeping count of connections costs one of them: limits (models/_limits.py), the memory of salts.

    python docs/experiments/limits_cost.py

CPU microseconds of one connection's accept, claim and leave: without limits, and with both of them while 0
and 1,000 other places are taken; and of one salt that is looked for and remembered. The best of several
rounds, in which the ways take turns. Printed in docs/architecture.md.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable

from models._limits import Limits
from tunnel.connection import accept_from
from tunnel.replay import SaltMemory

ROUNDS, TIMES = 15, 200
CROWD = 1000
MOST = 60_000  # places, of all and of one source: never met here


def of_accepting(limits: Limits) -> float:
    """Seconds for TIMES connections that wait in the listener's queue."""
    with socket.create_server(("127.0.0.1", 0), backlog=TIMES) as listener:
        place = listener.getsockname()
        waiting = [socket.create_connection(place) for _ in range(TIMES)]
        accept = limits.accept if limits.on else accept_from
        served = []
        started = time.thread_time()
        for _ in range(TIMES):
            accepted = accept(listener)
            limits.claim(accepted.fileno()).leave()
            served.append(accepted)
        spent = time.thread_time() - started
        for sock in (*waiting, *served):
            sock.close()
    return spent


def of_salts(memory: SaltMemory) -> float:
    salts = [os.urandom(32) for _ in range(TIMES)]
    started = time.thread_time()
    for salt in salts:
        memory.add(salt)
    return time.thread_time() - started


def crowded() -> Limits:
    """Limits with CROWD places taken: the same walk over the table, without as many connections."""
    limits = Limits(MOST, MOST)
    assert limits._table
    for source in range(CROWD):
        index = limits._table.take(MOST)
        assert index is not None
        limits._table.enter(index, source + 1, MOST)
    return limits


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    none, empty, full, memory = Limits(), Limits(MOST, MOST), crowded(), SaltMemory()
    ways: dict[str, Callable[[], float]] = {
        "accept, no limits": lambda: of_accepting(none),
        "accept, both limits": lambda: of_accepting(empty),
        f"accept, both limits, {CROWD:,} others": lambda: of_accepting(full),
        "one salt": lambda: of_salts(memory),
    }
    rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS)]
    for name in ways:
        print(f"{name:40}{min(spent[name] for spent in rounds) / TIMES * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
