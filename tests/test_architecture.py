"""The rules of the house (docs/architecture.md), read from the imports and from a server that runs.

A rule that nobody checks is a wish. Each test here names one rule; where it fails, its message names
the file and the line to change.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from models import MODELS, Model
from tests.cli.running import Running, Sealed, echo, environment, private
from tunnel.address import Address
from tunnel.config import DEFAULT_MODEL, format_uri

ROOT = Path(__file__).parent.parent
CORE = ("errors", "keys", "aead", "flow", "buffers", "address", "socks", "session", "judge")
NO_IO = {
    "socket",
    "select",
    "selectors",
    "threading",
    "_thread",
    "multiprocessing",
    "asyncio",
    "ssl",
    "subprocess",
}
COMMAND_LINE = {f"tunnel/{name}.py" for name in ("cli", "start", "gather", "status")}  # models by name only
NOT_SERVING = {"tunnel/status.py"}  # a command that looks at servers from outside
# A deadline counts by time.monotonic: somebody sets the wall clock. Who may read it, and what for:
WALL_CLOCK = {
    "tunnel/log.py": {"time.time"},  # a line's stamp
    "models/_mutex.py": {"time.CLOCK_REALTIME"},  # where libc has no other wait (musl)
    "models/_scoreboard.py": {"time.time"},  # when the server was started, for `tunnel status`
    "compare/cli.py": {"time.time"},  # when a run was started, and the name of its folder
    "compare/environment.py": {"time.gmtime"},
}
PASSWORD = "correct horse"
# What no server needs: plots, tables, command lines' helpers, the instrument, and what makes forks dear.
DEAR = {
    *(
        "threading",
        "logging",
        "asyncio",
        "multiprocessing",
        "concurrent",
        "ssl",
        "ctypes",
        "unittest",
        "email",
        "random",
        "difflib",
        "shutil",
        "bz2",
        "lzma",
    ),
    *("psutil", "tabulate", "vl_convert", "shtab", "hypothesis", "pytest", "compare", "tests"),
}
CODE_LINES = 80  # of a model file: one screen and a half
PART_LINES = 130  # of a file of a model that is a package
ARROW = re.compile(r"-->|==>|->|<--|<==|\^|v")
FIGURE, END = re.compile(r"\s*# fig: (?P<name>\S.*)"), re.compile(r"\s*# end fig")


class Import(NamedTuple):
    """One imported thing: `from models import fork` is `models.fork`."""

    module: str
    line: int

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no files: this test looks in the wrong place"
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, type_checking: bool = False) -> Iterator[Import]:
    """What a file imports, in functions as well; under TYPE_CHECKING only on request."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not type_checking
        for branch in node.body
        for inner in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join([*package, *filter(None, [base])])
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)


def broken(path: Path, found: Import) -> str:
    return f"{name_of(path)}:{found.line} imports {found.module}"


def module_files(package: str) -> set[str]:
    """The package's own modules; one of them may be a package itself."""
    parts = {path.relative_to(ROOT / package).parts[0] for path in sources(package)}
    return {part.removesuffix(".py") for part in parts} - {"__init__"}


def file_of(model: str) -> Path:
    """Where a model begins: its only file, or the first one of its package."""
    stem = ROOT / "models" / model.replace("-", "_")
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def name_of_model(path: Path) -> str:
    return path.relative_to(ROOT / "models").parts[0].removesuffix(".py").replace("_", "-")


# Rule 1: the core does no I/O


def test_the_core_imports_no_socket_no_clock_and_no_thread() -> None:
    core = [ROOT / "tunnel" / f"{name}.py" for name in CORE]
    assert [
        broken(path, found) for path in core for found in imports(path) if found.package in NO_IO | {"time"}
    ] == []


def test_the_core_imports_nothing_of_this_package_but_the_core() -> None:
    """Or it would do its I/O through a friend."""
    wrong = [
        broken(path, found)
        for name in CORE
        for path in [ROOT / "tunnel" / f"{name}.py"]
        for found in imports(path, type_checking=True)
        if found.package in ("models", "compare", "tests")
        or (found.package == "tunnel" and found.module.split(".")[1] not in CORE)
    ]
    assert wrong == []


def test_importing_the_core_loads_no_socket_and_no_thread() -> None:
    """Neither itself nor through what it imports from elsewhere."""
    ask = "import sys, tunnel.session, tunnel.judge; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {ask}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    loaded = set(ended.stdout.split())
    assert "tunnel.session" in loaded
    assert loaded & {"socket", "select", "threading", "multiprocessing", "asyncio"} == set()


# Rule 2: who imports whom


def test_tunnel_never_imports_a_model_but_for_the_command_line() -> None:
    wrong = [
        broken(path, found)
        for path in sources("tunnel")
        for found in imports(path)
        if found.package == "models" and name_of(path) not in COMMAND_LINE
    ]
    assert wrong == []


def test_the_command_line_imports_no_model_by_name() -> None:
    wrong = [
        broken(path, found)
        for path in sources("tunnel")
        for found in imports(path)
        if found.package == "models" and found.module.split(".")[1].replace("_", "-") in MODELS
    ]
    assert wrong == []


def test_a_model_imports_shared_parts_and_never_another_model() -> None:
    wrong = [
        broken(path, found)
        for path in sources("models")
        for found in imports(path, type_checking=True)
        if found.package == "models"
        and not found.module.split(".")[1].startswith("_")
        and found.module.split(".")[1:2] != [path.parent.name]  # a model that is a package, its own parts
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["tunnel", "models"])
def test_what_serves_imports_nothing_of_the_instrument_or_the_tests(package: str) -> None:
    wrong = [
        broken(path, found)
        for path in sources(package)
        for found in imports(path, type_checking=True)
        if found.package in ("compare", "tests", "tabulate", "psutil", "vl_convert")
        and name_of(path) not in NOT_SERVING
    ]
    assert wrong == []


def test_importing_the_registry_imports_no_model() -> None:
    ask = "import sys, models; print(*[name for name in sys.modules if name.startswith('models')])"
    ended = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, env=environment(), check=True
    )
    assert ended.stdout.split() == ["models"]


# Rule 4: the instrument knows servers as a user does


def test_compare_imports_no_model_and_nothing_of_the_core() -> None:
    """The registry is a list of names and may be read; everything else goes through processes."""
    files = module_files("models")
    wrong = [
        broken(path, found)
        for path in sources("compare")
        for found in imports(path, type_checking=True)
        if (found.package == "models" and found.module.split(".")[1] in files) or found.module == "importlib"
    ]
    assert wrong == []


# Rule 5: a server imports only what it serves with


WATCH = """
import os, sys

class Watch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        os.write(2, f"imported {name}\\n".encode())

sys.meta_path.insert(0, Watch)
"""


def imported_while_serving(model: str, command: str, tmp_path: Path) -> set[str]:
    """Every module that any of a server's processes imported: at start, for a client, for a prober."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)  # Python runs it first, if it is on the path
    watch = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    password = private(tmp_path / "password", PASSWORD)
    words = ("--model", model, "--log-level", "debug")
    with echo() as port, Running("serve", *words, "--password-file", password, env=watch) as server:
        subject = server
        if command == "forward":
            uri = format_uri(server.method, PASSWORD, Address(server.host, server.port))
            place = f"127.0.0.1:{port}"
            subject = Running(
                "forward", *words, "--server", "-", "--target", place, given=uri.encode(), env=watch
            )
            with subject:
                with subject.connect() as sock:
                    sock.sendall(b"hello")
                    assert sock.recv(5) == b"hello"
                ended = subject.end()
        else:
            client = Sealed(server, PASSWORD, port)
            client.send(b"hello")
            assert client.socket.recv(1)
            client.socket.close()
            with server.connect() as prober:
                prober.sendall(bytes(100))
                server.lines_until("handshake failed")
            ended = server.end()
    return set(re.findall(r"^imported ([\w.]+)$", ended.err, re.MULTILINE))


# Somebody else's loop, and what to import to see all that it cannot be had without.
OTHERS_LOOPS = {"asyncio": "concurrent.futures.thread", "uvloop": "uvloop", "tornado": "tornado.tcpserver"}


def brought_by(packages: set[str]) -> set[str]:
    """These, and what those of them that are somebody else's loop bring along."""
    loops = sorted(packages & OTHERS_LOOPS.keys())
    if not loops:
        return packages
    wanted = ["sys", *loops, *(OTHERS_LOOPS[name] for name in loops)]
    ask = f"import {', '.join(wanted)}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return packages | {name.partition(".")[0] for name in ended.stdout.split()}


@pytest.mark.parametrize("command", ["serve", "forward"])
@pytest.mark.parametrize("model", MODELS)
def test_a_running_server_has_imported_only_what_it_serves_with(
    model: str, command: str, tmp_path: Path
) -> None:
    loaded = imported_while_serving(model, command, tmp_path)
    name = f"models.{model.replace('-', '_')}"
    own = brought_by({found.package for found in imports(file_of(model))})
    if model == "prefork-mutex":
        own |= {"ctypes"}  # no other way leads to pthread's mutex
    assert name in loaded, "the import log was not understood"
    assert {found for found in loaded if found.partition(".")[0] in DEAR - own} == set()
    others = {f"models.{name.replace('-', '_')}" for name in MODELS} - {name}
    assert loaded & others == set()


# Rule 3: shared memory has two homes


def test_models_share_memory_through_the_scoreboard_alone() -> None:
    wrong = [
        broken(path, found)
        for path in sources("models")
        for found in imports(path)
        if found.package in ("mmap", "ctypes", "multiprocessing")
        and path.stem not in ("_scoreboard", "_limits", "_mutex")  # and what is a lock is its memory
    ]
    assert wrong == []


# Timers are monotonic (docs/faults.md, row 45)


def wall_clocks(source: str) -> Iterator[Import]:
    """Where a file reads the clock that somebody may set, by what name soever."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # what a name in this file stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {alias.asname or alias.name: home + alias.name for alias in node.names}
    unless_told = set()  # calls that are told which moment is meant
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            wanted = {"strftime": 2, "clock_gettime": 1, "clock_gettime_ns": 1}.get(last_name(node.func), 1)
            told = len(node.args) >= wanted and not isinstance(node.args[-1], ast.Constant)
            unless_told |= {id(node.func)} if told else set()
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        first, dot, rest = ast.unparse(node).partition(".")
        meant = names.get(first, "") + dot + rest
        if re.fullmatch(
            r"time\.(time|time_ns|CLOCK_REALTIME\w*|CLOCK_TAI)|datetime\.(datetime|date)\.\w*(now|today)",
            meant,
        ) or (
            re.fullmatch(r"time\.(gmtime|localtime|ctime|strftime|clock_gettime(_ns)?)", meant)
            and id(node) not in unless_told
        ):
            yield Import(meant, node.lineno)


def last_name(called: ast.expr) -> str:
    return ast.unparse(called).rpartition(".")[2]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.time() + 1", "time.time"),
        ("from time import time\ntime()", "time.time"),
        ("import time as clock\nclock.time_ns()", "time.time_ns"),
        ("import time\nnow = time.time", "time.time"),
        ("import time\ntime.clock_gettime(time.CLOCK_REALTIME)", "time.CLOCK_REALTIME"),
        ("import time\ntime.clock_gettime(0)", "time.clock_gettime"),
        ("import time\ntime.strftime('%H')", "time.strftime"),
        ("import time\ntime.gmtime()", "time.gmtime"),
        ("import datetime\ndatetime.datetime.now()", "datetime.datetime.now"),
        ("from datetime import datetime\ndatetime.utcnow()", "datetime.datetime.utcnow"),
        ("import time\ntime.strftime('%H', time.gmtime(now))", None),
        ("import time\ntime.monotonic()", None),
        ("import time\ntime.clock_gettime(clock)", None),
        ("loop.time()", None),
    ],
)
def test_a_wall_clock_is_seen_by_any_name(source: str, found: str | None) -> None:
    assert [clock.module for clock in wall_clocks(source)] == ([found] if found else [])


@pytest.mark.parametrize("package", ["tunnel", "models", "compare"])
def test_only_who_tells_the_time_reads_the_wall_clock(package: str) -> None:
    used: dict[str, set[str]] = {}
    for path in sources(package):
        clocks = list(wall_clocks(path.read_text()))
        allowed = WALL_CLOCK.get(name_of(path), set())
        wrong = [
            f"{name_of(path)}:{clock.line} reads {clock.module}"
            for clock in clocks
            if clock.module not in allowed
        ]
        assert wrong == [], "a deadline counts by time.monotonic"
        if clocks:
            used[name_of(path)] = {clock.module for clock in clocks}
    assert used == {name: clocks for name, clocks in WALL_CLOCK.items() if name.startswith(f"{package}/")}


# The registry


def test_every_model_has_its_file_and_every_file_its_model() -> None:
    files = {stem for stem in module_files("models") if not stem.startswith("_")}
    assert files == {name.replace("-", "_") for name in MODELS}
    assert DEFAULT_MODEL in MODELS


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_registry_line_says_what_a_reader_needs(model: Model) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*", model.name)
    assert re.fullmatch(r"UNP \d+(\.\d+)?|after UNP|[A-Z]\w+|libuv", model.source)
    assert model.summary
    assert len(model.summary) <= 60
    assert not model.summary.endswith(".")
    if model.pool is not None:
        least, most = model.pool
        assert 1 <= least <= most
    assert callable(model.load())


# Rule 6: a model file

EVERY_MODEL_FILE = pytest.mark.parametrize("path", [file_of(name) for name in MODELS], ids=MODELS)
PARTS = [
    part for name in MODELS if file_of(name).stem == "__init__" for part in file_of(name).parent.glob("*.py")
]


def code_lines(source: str) -> set[int]:
    """The lines that hold code: no docstring, no comment, no blank."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, described) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            docstrings.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    layout = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    return code - docstrings


def test_lines_of_code_are_counted_as_a_reader_would() -> None:
    source = (
        '"""Doc.\n\nMore.\n"""\n\nimport os  # why\n\n\n# note\n'
        'def f():\n    """Doc."""\n    return """\n    text\n"""\n'
    )
    assert code_lines(source) == {6, 10, 12, 13, 14}


@EVERY_MODEL_FILE
def test_a_model_is_at_most_eighty_lines_of_code(path: Path) -> None:
    assert len(code_lines(path.read_text())) <= CODE_LINES


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_a_part_of_a_model_is_short_and_opens_with_a_diagram(path: Path) -> None:
    source = path.read_text()
    assert len(code_lines(source)) <= PART_LINES
    assert ARROW.search(ast.get_docstring(ast.parse(source)) or "")


@EVERY_MODEL_FILE
def test_a_model_opens_with_its_diagram_its_source_and_when_to_use_it(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    title, blank, *_ = docstring.splitlines()
    name = name_of_model(path)
    assert title.lower().startswith(f"{name}: "), "the title begins with the model's name"
    assert title.endswith(".")
    assert blank == ""
    source = MODELS[name].source.removeprefix("after ").partition(" ")[0]
    places = [
        docstring.find(f"\n{words}") for words in (source, "Differs from", "Good when: ", "Breaks when: ")
    ]
    assert -1 not in places, f"a line begins with each of: {source}, Differs from, Good when:, Breaks when:"
    assert places == sorted(places)
    drawn = [line for line in docstring[: places[0]].splitlines() if re.search(r"--|==|[|+`<>]", line)]
    assert len(drawn) >= 3, "no diagram above the UNP section"
    assert ARROW.search("\n".join(drawn)), "a diagram shows what goes where"


@EVERY_MODEL_FILE
def test_a_model_names_the_section_that_the_registry_names(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert MODELS[name_of_model(path)].source.removeprefix("after ") in docstring


@EVERY_MODEL_FILE
def test_a_model_exports_serve(path: Path) -> None:
    tree = ast.parse(path.read_text())
    (serve,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "serve"]
    assert [argument.arg for argument in serve.args.args] == ["server"]


@EVERY_MODEL_FILE
def test_a_model_has_a_figure_to_quote(path: Path) -> None:
    assert FIGURE.search(path.read_text())


def figures(source: str) -> Iterator[tuple[str, int]]:
    """The names of the figures and how many lines of code each has. Raises ValueError where unbalanced."""
    opened: tuple[str, int] | None = None
    code = code_lines(source)
    for number, line in enumerate(source.splitlines(), 1):
        if match := FIGURE.fullmatch(line):
            if opened:
                raise ValueError(f"line {number}: a figure within the figure of line {opened[1]}")
            opened = match["name"], number
        elif END.fullmatch(line):
            if not opened:
                raise ValueError(f"line {number}: no figure is open")
            yield opened[0], len([at for at in code if opened[1] < at < number])
            opened = None
        elif re.match(r"\s*#\s*(end\s*)?fig\b", line):
            raise ValueError(f"line {number}: expected `# fig: NAME` or `# end fig`")
    if opened:
        raise ValueError(f"line {opened[1]}: this figure has no end")


@pytest.mark.parametrize("path", [*sources("models"), *sources("tunnel")], ids=name_of)
def test_figure_markers_are_balanced_and_named_once(path: Path) -> None:
    found = list(figures(path.read_text()))
    names = [name for name, _ in found]
    assert len(names) == len(set(names))
    assert all(lines > 0 for _, lines in found), "a figure without code"


@pytest.mark.parametrize(
    "source",
    [
        "# fig: a\nx = 1\n",
        "# end fig\n",
        "# fig: a\n# fig: b\nx = 1\n# end fig\n# end fig\n",
        "# fig:\nx = 1\n# end fig\n",
        "# fig: a\nx = 1\n# end  figure\n",
    ],
)
def test_unbalanced_markers_are_seen(source: str) -> None:
    with pytest.raises(ValueError, match="line"):
        list(figures(source))


# The repository


@pytest.mark.parametrize("package", ["tunnel", "models", "compare"])
def test_every_file_says_first_what_it_is(package: str) -> None:
    silent = [
        name_of(path)
        for path in sources(package)
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def files_of_the_repository() -> list[Path]:
    """What git tracks; in a copy without git, everything but hidden and built directories."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    built = {"build", "dist", "results", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if not any(part.startswith(".") or part in built for part in path.relative_to(ROOT).parts)
    ]


# In two parts each, or this file would be the first to break its own rule.
MACHINE = [
    r"(?<![\w.~-])/" + r"work/(?:main|shared|\.)",
    r"/tmp/" + r"lab\b",
    r"\bfarm" + r"-[a-z0-9]",
    r"/home/" + r"(?!USER|user\b|you\b)[a-z]\w*/",
    r"/root/" + r"\.\w",
]


def test_no_file_names_the_machine_that_it_was_written_on() -> None:
    pattern = re.compile("|".join(MACHINE))
    wrong = []
    for path in files_of_the_repository():
        if not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        wrong += [
            f"{name_of(path)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert wrong == []
