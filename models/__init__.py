"""The registry: every server model, by the name that `--model` takes.

    family      who waits where
    blocking    a process or a thread for each client, blocked in a system call
    loop        one thread for all clients, blocked only in select and its kind

To add a model, write `models/NAME.py` with `serve(server)` and add its line to MODELS: the command
line, the conformance tests and `compare` find it here.

Rules: importing this imports no model; a server pays only for the one that it runs. And nothing that
is imported here is called as a model is: once `models.select` is loaded, `select` here means that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from models._server import Server


COPIES = ("poll", "threads", "fork")  # _copy.py has them


class Model(NamedTuple):
    """A line of the registry."""

    name: str
    family: str
    source: str  # the section of UNIX Network Programming, vol. 1, 3rd ed., or where else it comes from
    summary: str
    clients: int | None = None  # how many at once, where the design itself says so
    pool: tuple[int, int] | None = None  # workers, least and most, unless --workers says otherwise
    master: bool = False  # they are processes, under _master.py
    elastic: bool = False  # they become more when all are busy, up to the most
    reuse_port: bool = False  # each has a listener of its own, so they are as many as there were at start
    copy: str | None = None  # how both directions are copied, unless --relay says otherwise; loops: None
    copies: tuple[str, ...] = ()  # the ways that --relay may name
    needs: str | None = None  # what this system may lack: "epoll", or a package

    def missing(self) -> str | None:
        """Why this system cannot run it, and what would make it run; None if it can."""
        if self.needs is None:
            return None
        if self.needs == "epoll":
            return None if sys.platform == "linux" else "epoll is Linux's own: run it there"
        if find_spec(self.needs):
            return None
        return f"{self.needs} is not installed: pip install 'unp-tunnel[loops]'"

    def load(self) -> Callable[[Server], None]:
        """The model's `serve`."""
        serve: Callable[[Server], None] = import_module(f"models.{self.name.replace('-', '_')}").serve
        return serve


def blocking(name: str, source: str, summary: str, **more: Any) -> Model:
    return Model(name, "blocking", source, summary, **({"copy": "poll", "copies": COPIES} | more))


def threaded(name: str, source: str, summary: str, **more: Any) -> Model:
    """Blocking, in threads: forking is for the one that signals are delivered to (_copy.py)."""
    return blocking(name, source, summary, copies=COPIES[:2], **more)


def loop(name: str, source: str, summary: str, **more: Any) -> Model:
    return Model(name, "loop", source, summary, **more)


def pool(name: str, source: str, summary: str) -> Model:
    return blocking(name, source, summary, pool=(2, 128), master=True, elastic=True)


def pool_of_loops(name: str, source: str, summary: str, **more: Any) -> Model:
    return loop(name, source, summary, pool=(2, 2), master=True, needs="epoll", **more)


THREADS = (16, 16)  # of a pool
MODELS = {
    model.name: model
    for model in (
        blocking("iterative", "UNP 30.4", "one client after the other", clients=1),
        blocking("fork", "UNP 30.5", "one child process for each client"),
        threaded("thread", "UNP 30.10", "two blocking threads for each client", copy="threads"),
        pool("prefork", "UNP 30.6", "a pool of children, all blocked in accept"),
        pool("prefork-fcntl", "UNP 30.7", "the same, a file lock around accept"),
        pool("prefork-mutex", "UNP 30.8", "the same, a robust mutex in shared memory"),
        pool("prefork-fdpass", "UNP 30.9", "the parent accepts, and passes descriptors"),
        threaded("prethread", "UNP 30.11", "a pool of threads, a lock around accept", pool=THREADS),
        threaded("prethread-queue", "UNP 30.12", "main accepts, a queue, a pool of threads", pool=THREADS),
        threaded("sigio", "UNP 25", "signal-driven accept, a thread for each client"),
        loop("select", "UNP 6.8", "one thread, non-blocking sockets, select"),
        loop("poll", "UNP 6.11", "the same, with poll"),
        loop("epoll", "libuv", "libuv's loop, by its own names", needs="epoll"),
        pool_of_loops("prefork-epoll", "after UNP", "an epoll loop for each child"),
        pool_of_loops(
            "prefork-reuseport", "after UNP", "the same, each with its own listener", reuse_port=True
        ),
        loop("trampoline", "Beazley", "generators as coroutines, over a small scheduler"),
        loop("asyncio", "Python", "BufferedProtocol on the standard loop"),
        loop("uvloop", "libuv", "BufferedProtocol on the real libuv", needs="uvloop"),
        loop("tornado", "Tornado", "TCPServer and IOStream", pool=(1, 1), needs="tornado"),
    )
}
