"""The registry: every server model, by the name that `--model` takes.

    family      who waits where
    blocking    a process or a thread for each client, blocked in a system call
    loop        one thread for all clients, blocked only in select and its kind

To add a model, write `models/NAME.py` with `serve(server)` and add its line to MODELS: the command
line, the conformance tests and `compare` find it here.

Rules: importing this imports no model; a server pays only for the one that it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from models._server import Server


class Model(NamedTuple):
    """A line of the registry."""

    name: str
    family: str
    source: str  # the section of UNIX Network Programming, vol. 1, 3rd ed.
    summary: str
    clients: int | None = None  # how many at once, where the design itself says so
    pool: tuple[int, int] | None = None  # workers, least and most, unless --workers says otherwise
    slots: int = 1  # of the scoreboard, in models without a pool
    copy: str | None = None  # how both directions are copied, unless --relay says otherwise; loops: None

    def load(self) -> Callable[[Server], None]:
        """The model's `serve`."""
        serve: Callable[[Server], None] = import_module(f"models.{self.name.replace('-', '_')}").serve
        return serve


MODELS = {
    model.name: model
    for model in (
        Model("iterative", "blocking", "UNP 30.4", "one client after the other", clients=1, copy="poll"),
        Model("fork", "blocking", "UNP 30.5", "one child process for each client", slots=1024, copy="poll"),
        Model(
            "thread",
            "blocking",
            "UNP 30.10",
            "two blocking threads for each client",
            slots=1024,
            copy="threads",
        ),
        Model(
            "prefork",
            "blocking",
            "UNP 30.6",
            "a pool of children, all blocked in accept",
            pool=(2, 128),
            copy="poll",
        ),
        Model("select", "loop", "UNP 6.8", "one thread, non-blocking sockets, select"),
    )
}
