"""The rows of the table: number, fault, right reaction, and whom they are for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pytest

from models import MODELS

if TYPE_CHECKING:
    from tests.faults.case import Case

PEERS = ("libev", "go")
# tornado is one process, or with --workers, which it gets here, a pool under our master.
POOLS = tuple(name for name, model in MODELS.items() if model.master or name == "tornado")
BLOCKING_POOLS = tuple(name for name in POOLS if MODELS[name].family == "blocking")
LOOPS = tuple(name for name, model in MODELS.items() if model.family == "loop")
FORKS = ("fork", *POOLS)
POOLS_OF_THREADS = ("prethread", "prethread-queue")
THREADS = ("thread", "sigio", *POOLS_OF_THREADS)
LOCKS = ("prefork-fcntl", "prefork-mutex")
ONE_CLIENT = {"iterative": "one client holds up all others: its lesson"}

# The columns of the table: models that meet a fault alike.
COLUMNS: Mapping[str, Sequence[str]] = {
    "iterative": ("iterative",),
    "fork": ("fork",),
    "prefork": BLOCKING_POOLS,
    "thread": ("thread", "sigio"),
    "prethread": POOLS_OF_THREADS,
    "loops": ("select", "poll", "epoll", "trampoline"),
    "pools of loops": ("prefork-epoll", "prefork-reuseport"),
    "asyncio": ("asyncio", "uvloop", "tornado"),
    **{peer: (peer,) for peer in PEERS},
}


class Row(NamedTuple):
    """One line of the table."""

    fault: str
    reaction: str
    models: Sequence[str] = tuple(MODELS)
    later: str = ""  # why it cannot be tried yet


ROWS: Mapping[int, Row] = {
    1: Row("truncated handshake, then silence", "drain to the deadline"),
    2: Row("the same, then FIN", "FIN, never RST"),
    3: Row("wrong tag", "drain"),
    4: Row("SIP004 length above 0x3FFF", "refuse"),
    5: Row("zero-length chunk", "refuse, no spin"),
    6: Row("replayed salt", "drain, and count it"),
    7: Row("two connections race one salt", "exactly one wins"),
    8: Row("the server's own salt sent back", "drain"),
    9: Row("the first 50 bytes pre-played", "the genuine client still works"),
    10: Row("SIP022 time off by 31 s", "refuse; 29 s passes", (), "SIP022 is not spoken yet"),
    11: Row("bad ATYP, empty or NUL host, port 0", "drain"),
    12: Row("slowloris", "one absolute deadline; others are served meanwhile"),
    13: Row("half-close, both orders", "FIN passed on, 10 MB back exact"),
    14: Row("RST from client or target", "the other side closed promptly"),
    15: Row("wrong tag after 1 MB", "nothing forged forwarded; target reset"),
    16: Row("target closes first", "all bytes, then FIN"),
    17: Row("a side never reads", "the sender stalls, memory stays bounded"),
    18: Row("EPIPE", "survive"),
    19: Row("1-byte writes; odd segment sizes", "exact"),
    20: Row("target refuses", "quick close, reason logged (SOCKS5 reply 5 at the local end)"),
    21: Row("black hole", "connect timeout"),
    22: Row("DNS fails, or hangs", "bounded; a loop keeps serving others"),
    23: Row("denied destination, DNS rebinding", "no SYN leaves"),
    24: Row("IPv6 only, dual stack, dead AAAA", "right bind; falls back"),
    25: Row("out of descriptors (EMFILE)", "accepting pauses, live connections go on"),
    26: Row("fork fails (EAGAIN)", "that client is dropped, the parent lives", FORKS),
    27: Row("a thread does not start", "the same", THREADS),
    28: Row("descriptor 1024 and up", "refuse with a clear line", ("select",)),
    29: Row("10,000 idle connections", "bounded memory", LOOPS),
    30: Row("flood past the backlog", "recovers"),
    31: Row("out of memory", "one worker or connection dies, not the server", FORKS),
    32: Row("kill -9 a worker mid-transfer", "only its streams end; it is respawned", FORKS),
    33: Row("kill -9 or STOP the holder of the accept lock", "others accept within 1 s", LOCKS),
    34: Row("kill -9 the master", "workers exit, the port is free", FORKS),
    35: Row("a worker hangs", "the heartbeat aborts, then kills it", POOLS),
    36: Row("workers die at start", "stop with a distinct exit code, no respawn loop", POOLS),
    37: Row("SIGCHLD storm", "no zombies", ("fork",)),
    38: Row("inherited descriptors", "the peer sees EOF within 1 s while a sibling lives", ("fork",)),
    39: Row("random numbers after fork", "every response salt unique", FORKS),
    40: Row("SIGTERM mid-transfer", "stop accepting, finish, exit 0 within the grace time"),
    41: Row("a second SIGTERM or SIGINT", "at once"),
    42: Row("SIGHUP, good and bad configuration", "no connection refused; a bad one keeps the old"),
    43: Row("port in use; privileged port", "one line, exit code not 0"),
    44: Row("log disk full", "traffic goes on, lost lines are counted"),
    45: Row("clock jumps", "timers are monotonic"),
    46: Row("loss, delay, rate limits", "exact"),
    47: Row("configuration and key errors", "file, key and what was expected; exit 78"),
    48: Row("secrets", "not in argv, environment, logs or repr; an open key file is refused"),
    49: Row("UDP packets of one session in different workers", "one owner", (), "UDP is not relayed yet"),
    50: Row("probes: failed handshakes of 27 kinds", "all end alike"),
}
Check = Callable[["Case"], None]


def row(
    number: int,
    *,
    quick: Sequence[str] = (),
    peers: Sequence[str] = (),
    cannot: Mapping[str, str] | None = None,
) -> Callable[[Check], Check]:
    """A check of this row. After it, what holds after every row (Case.aftermath).

    quick   the models that it runs for in `make test`
    peers   other implementations that it can be tried on
    cannot  by model: why it cannot be
    """

    def decorate(check: Check) -> Check:
        @functools.wraps(check)
        def run(case: Case) -> None:
            case.judge(check)

        mark = pytest.mark.row(number, quick=quick, peers=peers, cannot=cannot or {})
        marked: Check = mark(run)
        return marked

    return decorate
