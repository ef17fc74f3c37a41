"""Every check here runs over every model in `models.MODELS`, and over the ends that it names.

    model     from the registry: a model that is registered gets all of this
    end       serve and local, or what `@pytest.mark.ends(...)` says
    rig       that model at that end, shared with other checks; is_healthy() follows each of them
    make_rig  a server of the check's own: its flags, its death

`@pytest.mark.costly` spreads the ends over the models, and so does every check for those in ACCEPT_ONLY:
`-m "slow or not slow"` runs all pairs.
`@pytest.mark.two_clients` leaves out, and says so, a model whose design has one client at a time.
`@pytest.mark.pools` keeps to models with a pool of processes under our master, `@pytest.mark.elastic` to
those whose pool grows with the load, `@pytest.mark.only` to those that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models import MODELS
from tests.harness.marks import ACCEPT_ONLY, SLOW, leave_out_slow
from tests.harness.rig import LOCAL, SERVE, Rig

MakeRig = Callable[..., Rig]
WORKERS = 8  # in models that have a pool, unless a check says otherwise; 0: the model's own choice


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        SLOW,
        "ends(*names): the ends of the tunnel that a check is about (default: serve, local)",
        "two_clients: needs two clients at once; not for a model that has one at a time",
        "costly: takes seconds; each model does it at one end, and at the others where slow checks run",
        "only(*models): about what these models alone have",
        "pools: about workers; only for models whose pool is processes under our master",
        "elastic: about pools that grow with the load",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_slow(config, items)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = {mark.name: mark for mark in reversed([*metafunc.definition.iter_markers()])}  # the closest wins
    names = [
        name
        for name, model in MODELS.items()
        if ("pools" not in marks or model.master) and ("elastic" not in marks or model.elastic)
    ]
    if "only" in marks:
        names = [name for name in names if name in marks["only"].args]
    if "end" not in metafunc.fixturenames:
        if "model" in metafunc.fixturenames:
            metafunc.parametrize("model", names, scope="session")
        return
    ends = marks["ends"].args if "ends" in marks else (SERVE, LOCAL)
    pairs = []
    for place, name in enumerate(names):
        for end in ends:
            spread = "costly" in marks or name in ACCEPT_ONLY
            left_out = spread and end != ends[place % len(ends)]
            pairs.append(pytest.param(name, end, marks=[pytest.mark.slow] if left_out else []))
    metafunc.parametrize(("model", "end"), pairs, scope="session")


@pytest.fixture(autouse=True)
def _enough_clients(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("two_clients") and "model" in request.fixturenames:
        name = request.getfixturevalue("model")
        if MODELS[name].clients == 1:
            pytest.skip(f"{name} has one client at a time (Model.clients == 1): this check needs two at once")


def pool_of(model: str, workers: int) -> list[str]:
    """The flag for a pool of a fixed size, so that what it holds can be compared; none for other models."""
    return ["--workers", str(children(model, workers) or workers)] if workers and MODELS[model].pool else []


def children(model: str, workers: int) -> int:
    """How many processes that gives; a loop serves any number of clients, so some are as good as many."""
    chosen = MODELS[model]
    if chosen.family == "loop":
        return min(workers, WORKERS) if chosen.pool else 0
    return workers if chosen.master else 0


def threads_of(model: str, workers: int) -> int:
    """How many threads that gives, where the pool is threads."""
    chosen = MODELS[model]
    return workers if chosen.pool and not chosen.master and chosen.family == "blocking" else 0


class Shared:
    """The server that checks share: one at a time, started anew if a check has hurt it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ("", "")
        self._rig: Rig | None = None

    def get(self, model: str, end: str) -> Rig:
        if self._rig is None or self._key != (model, end) or not self._rig.tunnel.running:
            self.drop()
            flag, full = pool_of(model, WORKERS), children(model, WORKERS)
            threads = threads_of(model, WORKERS)
            self._rig = Rig(self._directory, model, end, *flag, workers=full, threads=threads)
            self._key = (model, end)
            self._rig.warm_up()
        return self._rig

    def drop(self) -> None:
        if self._rig is not None:
            self._rig.close()
        self._rig = None


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    servers = Shared(tmp_path_factory.mktemp("shared"))
    yield servers
    servers.drop()


@pytest.fixture
def rig(model: str, end: str, shared: Shared) -> Iterator[Rig]:
    rig = shared.get(model, end)
    try:
        yield rig
        rig.is_healthy()
    except BaseException:
        shared.drop()
        raise
    finally:
        print(rig.tunnel.log())  # shown with a failure


@pytest.fixture
def make_rig(model: str, end: str, tmp_path: Path) -> Iterator[MakeRig]:
    made: list[Rig] = []

    def make(*arguments: str, warm: bool = True, workers: int = WORKERS, **options: object) -> Rig:
        pool = pool_of(model, workers)
        options["workers"] = children(model, workers)
        options["threads"] = threads_of(model, workers)
        rig = Rig(tmp_path, model, end, *pool, *arguments, **options)  # type: ignore[arg-type]
        made.append(rig)
        if warm:
            rig.warm_up()
        return rig

    yield make
    for rig in made:
        log = rig.tunnel.log()
        print(log)  # shown with a failure
        rig.close()
        assert "Traceback" not in log, log
