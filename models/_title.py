"""Process titles, as `ps` shows them: who does what.

Rules: of the package setproctitle only the part in C is loaded. Its `__init__` imports logging, and
with it threading, whose at-fork handlers run in every child (tunnel/log.py has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec


def part_in_c() -> Callable[[str], None]:
    package = find_spec("setproctitle")
    assert package
    found = PathFinder.find_spec("_setproctitle", package.submodule_search_locations)
    assert found
    assert found.loader
    module = module_from_spec(found)
    found.loader.exec_module(module)
    set_title: Callable[[str], None] = module.setproctitle
    return set_title


set_title = part_in_c()
