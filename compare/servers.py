"""What is compared, and how each is started and stopped: as a user would.

    start: config file (0600), free port --> python -m tunnel serve --model=NAME --config FILE
                                         --> ss-server, v2ray ...                   peers.py
           at the other end              --> python -m tunnel local ..., ss-local ...
           the port is listened on       --> ready
    ask:   python -m tunnel status --json --pid PID   --> who served how many, from its scoreboard
    stop:  SIGTERM --> it ends; or after PATIENCE SIGKILL to its whole process group

Every server gets a session and process group of its own: Ctrl-C does not reach it, and what it
leaves behind can be swept. Rules: its exit is awaited without reaping it (WNOWAIT), so that its pid
names nobody else while its group is swept.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import compare.launch
from compare import peers
from compare.cgroup import Group
from compare.interrupt import Interrupt
from models import MODELS, Model
from tunnel.config import LOCAL, SERVE

PASSWORD = "measured-on-loopback-only"  # noqa: S105
START = 10.0  # seconds from exec to listening
PATIENCE = 5.0  # seconds from SIGTERM to exit
LOOKS = 0.005  # seconds between two looks at whether it listens, or has ended
ATTEMPTS = 3  # a free port may be taken by somebody else before the server binds it
LAST_LINES = 2  # of a failed server's output that are quoted
RAISED = re.compile(r"(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b")  # how a traceback ends
LOOPBACK = "127.0.0.1"
STATUS = 10.0  # seconds that `tunnel status` has to answer

MODEL, PEER, BASELINE, TWICE = "model", "peer", "baseline", "twice"
AGAIN = " (again)"  # the name of a model's second entry: what differs between the two is noise
LIBEV, DIRECT, RELAY, AEAD, NULL = "libev", "direct", "relay", "aead", "null"
FORK, BARE_FORK = "fork", "bare-fork"
RELAY_MODEL = "thread"  # blocking recv_into and sendall: the cheapest way to copy that this tree has
# How many clients at once a design can have, besides what its pool says: `select` has two descriptors
# for each and FD_SETSIZE is 1,024 (UNP 6.8); of processes and threads we ask for no more than these.
DESIGN = {"select": 500, "fork": 1000, "thread": 1000, "sigio": 1000}


class Row(NamedTuple):
    """A line of the report."""

    name: str
    kind: str  # MODEL, PEER, BASELINE or TWICE
    source: str  # where it is described
    summary: str
    clients: int | None = None  # at once, where the design or its pool has a limit
    pool: bool = False  # of workers that wait for clients: clients per child can be told
    fin: bool = True  # it passes our FIN on, and so closes when the target does
    herd: bool = False  # the size of its pool is a question of the book's (UNP 30.6 to 30.9)


def row_of(model: Model) -> Row:
    most = DESIGN.get(model.name, model.clients)
    if most is None and model.pool and model.family == "blocking":
        most = model.pool[1]  # one client a worker
    pool, herd = model.pool is not None, model.elastic
    return Row(model.name, MODEL, model.source, model.summary, most, pool, herd=herd)


def null_of(row: Row) -> Row:
    return row._replace(name=f"{row.name}{AGAIN}", kind=TWICE, summary="the same model once more")


ROWS = {
    **{model.name: row_of(model) for model in MODELS.values()},
    **{
        peer.name: Row(peer.name, PEER, peer.program, peer.summary, fin=peer.fin)
        for peer in peers.PEERS.values()
    },
    DIRECT: Row(DIRECT, BASELINE, "-", "no server between: the generator's own limit"),
    RELAY: Row(RELAY, BASELINE, "-", f"a plain relay without encryption, model {RELAY_MODEL}"),
    AEAD: Row(AEAD, BASELINE, "-", "sealing and opening in memory, nothing else"),
    BARE_FORK: Row(BARE_FORK, BASELINE, "-", "fork, exit and wait of the process that fork serves from"),
    NULL: Row(NULL, BASELINE, "-", "server and target in one, to load the generator: compare ceiling"),
}
ROWS |= {f"{name}{AGAIN}": null_of(ROWS[name]) for name in MODELS}


class ServerFailed(Exception):
    """A server that did not start, or did not live: one line, with its last words."""


class Server:
    """A running server. `with start(...) as server:`; it is gone afterwards, whatever happened."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        folder: tempfile.TemporaryDirectory[str],
        group: Group | None,
    ) -> None:
        self.pid = process.pid
        self.port = port
        self.began = 0.0  # time.monotonic() when it was exec'ed
        self._process = process
        self._folder = folder
        self._group = group

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def cgroup_cpu(self) -> float | None:
        """CPU seconds by its control group's account; None where it has none."""
        return self._group.cpu() if self._group else None

    def log(self) -> list[str]:
        """What it wrote on standard output and standard error."""
        with open(os.path.join(self._folder.name, "log"), encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()

    def last_words(self) -> str:
        lines = [line.strip() for line in self.log() if line.strip()]
        if lines and RAISED.match(lines[-1]):  # of a traceback the line above it says nothing
            return lines[-1]
        return " | ".join(lines[-LAST_LINES:]) or "it said nothing"

    def scoreboard(self) -> dict[str, Any] | None:
        """What `tunnel status` says of it, asked as a user would; None if it knows no such server."""
        words = [sys.executable, "-m", "tunnel", "status", "--json", "--pid", str(self.pid)]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=STATUS,
                check=False,
                start_new_session=True,  # Ctrl-C is for the run
            )
            boards: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        except (subprocess.TimeoutExpired, ValueError):
            return None
        return next((board for board in boards if board["pid"] == self.pid), None)

    def stop(self) -> str | None:
        """Ends it and all that it started. Returns what was wrong with how it ended, if anything."""
        if self._process.returncode is not None:
            return None
        complaint = None
        if not self.ended():
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(LOOKS)
            if not self.ended():
                complaint = f"did not end within {PATIENCE:g} s of SIGTERM"
        os.killpg(self.pid, signal.SIGKILL)  # it exists: its leader is alive, or not reaped yet
        code = self._process.wait()
        self._folder.cleanup()
        if self._group:
            self._group.remove()
        return complaint or (None if code == 0 else f"exit code {code}")


def start(
    row: Row,
    method: str,
    cores: Sequence[int],
    interrupt: Interrupt,
    *,
    workers: int | None = None,
    service: Sequence[str] = (),
    address: str = LOOPBACK,
    leads_to: int | None = None,
) -> Server:
    """A server that listens. Raises ServerFailed.

    workers: the fixed size of its pool. service: arguments that make it one of the book's services,
    without encryption. leads_to: it is the client end, of the Shadowsocks server with that port.
    """
    for attempt in range(ATTEMPTS):
        port = free_port(address)
        folder = tempfile.TemporaryDirectory(prefix="compare-")
        program = (
            unsealed(row, address, port, service)
            if service
            else command(row, peers.Listen(port, method, PASSWORD, folder.name, address, leads_to))
        )
        if workers is not None:
            program += ["--workers", str(workers)]
        group = Group.make()
        tells, told = os.pipe()
        process = spawn(program, cores, folder.name, group.procs if group else "", told)
        os.close(told)
        server = Server(process, port, folder, group)
        try:
            interrupt.wait(tells, START)
            server.began = time.monotonic()
            if wait_until_listening(server, interrupt):
                return server
            words = server.last_words()
        except BaseException:
            server.stop()
            raise
        finally:
            os.close(tells)
        server.stop()
        if "in use" not in words or attempt == ATTEMPTS - 1:
            break
    raise ServerFailed(f"{row.name} did not start: {words}")


def command(row: Row, listen: peers.Listen) -> list[str]:
    """How a user starts it. The password stands in a file that only we can read, where there is a way."""
    if row.kind == PEER:
        peer = peers.PEERS[row.name]
        if listen.server is None:
            return peer.command(listen)
        assert peer.client is not None, "peers.found leaves out those without a client"
        return peer.client.command(listen)
    if row.name == BARE_FORK:
        program = command(ROWS[FORK], listen)
        return [*program[:2], "compare.forks", *program[3:]]
    if row.name == NULL:
        return [sys.executable, "-m", "compare.null", listen.address, str(listen.port), listen.method]
    path, model = peers.write(listen, peers.shadowsocks_config(listen)), row.name.removesuffix(AGAIN)
    words = [sys.executable, "-m", "tunnel", SERVE, f"--model={model}", "--config", path]
    if listen.server is None:
        return [*words, *allowed(listen.address)]
    return [LOCAL if word == SERVE else word for word in words]


def allowed(address: str) -> list[str]:
    """The flags that let clients of that address reach the target, which is on it too."""
    return [] if address == LOOPBACK else ["--allow", f"{address}/32"]


def unsealed(row: Row, address: str, port: int, service: Sequence[str]) -> list[str]:
    """The same model without encryption."""
    model = RELAY_MODEL if row.name == RELAY else row.name.removesuffix(AGAIN)
    words = [
        "tunnel",
        "serve",
        f"--model={model}",
        "--listen",
        f"{address}:{port}",
        *allowed(address),
        *service,
    ]
    return [sys.executable, "-m", *words]


def spawn(
    program: Sequence[str], cores: Sequence[int], folder: str, group: str, told: int
) -> subprocess.Popen[bytes]:
    """The program on these cores, in a session of its own, its output in a file of `folder`.

    told: the end of a pipe that is closed when the program begins.
    """
    with open(os.path.join(folder, "log"), "wb") as log:
        return subprocess.Popen(
            launched(program, cores, group, str(told)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(told,),
        )


def launched(program: Sequence[str], cores: Sequence[int], group: str = "", told: str = "") -> list[str]:
    """The command line that starts `program` by way of launch.py."""
    launcher = [sys.executable, "-I", "-S", compare.launch.__file__]
    return [*launcher, str(os.getpid()), ",".join(map(str, cores)), group, told, *program]


def wait_until_listening(server: Server, interrupt: Interrupt) -> bool:
    """True once the port is listened on: asked of the kernel, since a probe would be a client."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and not server.ended():
        if listening(server.port):
            return True
        interrupt.wait(None, LOOKS)
    return False


def listening(port: int) -> bool:
    """True if some socket listens on that port of IPv4 (proc_net(5): state 0A)."""
    wanted = f":{port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as file:
        return any(fields[1].endswith(wanted) and fields[3] == "0A" for fields in map(str.split, file))


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
