"""The marker `slow`: what does not fit into `make test`.

`pytest -m slow` runs it alone, `pytest -m "slow or not slow"` runs everything.
"""

from __future__ import annotations

import pytest

# Each of these differs from a sibling in how it accepts, and relays with the same code: what is about
# relaying runs for the sibling in `make test`, and for these too in `make test-slow`.
ACCEPT_ONLY = (
    "prefork-fcntl",
    "prefork-mutex",
    "prefork-fdpass",
    "prefork-reuseport",
    "prethread-queue",
    "sigio",
)
SLOW = "slow: takes long; left out unless -m says otherwise"


def leave_out_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without -m, deselects what is marked slow, and so says how much was left out."""
    if config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
