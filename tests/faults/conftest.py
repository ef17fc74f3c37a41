"""Which cells run, and where their results go.

subject   a model of the row, or a peer that it can be tried on
case      that cell; what its check needs, and what holds after it
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models import MODELS
from tests.conformance import conftest as conformance
from tests.faults import table
from tests.faults.case import Case, Shared
from tests.faults.rows import ROWS

FAULTS = "faults: a cell of the table of faults; `make faults` runs all, `make test` the quick ones"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", metavar="FILE", help="write the table of faults between the marks in FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", FAULTS)
    config.addinivalue_line("markers", "row(number): a check of this row of the table")
    conformance.pytest_configure(config)  # rows call checks from there, which have its markers
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(table.Collector(config), "table of faults")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("row")
    if mark is None:
        return
    names = [*ROWS[mark.args[0]].models, *mark.kwargs["peers"]]
    metafunc.parametrize("subject", names, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without -m faults, only the quick cells."""
    everything = "faults" in (config.getoption("markexpr") or "")
    left_out = []
    for item in items:
        mark = item.get_closest_marker("row")
        callspec = getattr(item, "callspec", None)
        if mark is None or callspec is None:
            continue
        subject = callspec.params["subject"]
        item.add_marker("faults")
        check = item.name.partition("[")[0]
        item.user_properties.append(("cell", (mark.args[0], subject, check)))
        how = " ".join((getattr(item.obj, "__doc__", "") or "").split())  # type: ignore[attr-defined]
        item.user_properties.append(("how", how))
        if not everything and subject not in mark.kwargs["quick"]:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    servers = Shared(tmp_path_factory.mktemp("shared"))
    yield servers
    servers.drop()


@pytest.fixture
def case(subject: str, shared: Shared, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    mark = request.node.get_closest_marker("row")
    if why := mark.kwargs["cannot"].get(subject):
        pytest.skip(f"{subject}: {why}" if subject in MODELS else why)
    case = Case(mark.args[0], subject, shared, tmp_path)
    yield case
    request.node.user_properties.append(("notes", case.notes))
    case.close()
