"""From what the user wants to a server that runs: serve, local and forward.

    values --> listeners --> Server --> model.serve(server)
    gather.py  listen.py       `- service: new_session, which Session, with which secret
                               |           dial: targets, judged; or the one server
                               `- SIGHUP: values again, another service      SIGUSR2: handover.py

    command    accepts           dials
    serve      sealed streams    where they say         or it is one of the book's services, services.py
    local      SOCKS5            its server
    forward    anything          its server

Rules: everything that can be wrong is found before the first connection is accepted. What only some
servers need is imported by those: what a server has imported is what its forks cost.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from models import MODELS
from models._limits import Limits
from models._scoreboard import Scoreboard
from models._server import Rehearsal, Server, Service, Timeouts, Workers
from models._stop import Renewal, Stop
from tunnel import config, socks
from tunnel.address import Address, pack
from tunnel.aead import Sealer
from tunnel.config import FORWARD, HANDOVER, LOCAL, RELAY, SERVE, TUNNEL, Values
from tunnel.dial import Dial, is_own
from tunnel.errors import ConfigError, TunnelError
from tunnel.gather import Gatherer, listen_places, server_places, service_of
from tunnel.keys import Secret
from tunnel.listen import bound_address, listen, on_loopback, set_no_delay
from tunnel.log import describe, log
from tunnel.replay import SaltMemory
from tunnel.session import ForwardSession, ServerSession, Session, SocksSession

if TYPE_CHECKING:
    from tunnel.judge import Judge

# What a reload cannot change, and docs/configuration.md marks r; and where each end listens.
RESTART = ("model", "backlog", "user", "group", "replay_file", "grace", "nofile")
LISTEN_SERVE = ("listen", "server", "server_port")
LISTEN_CLIENT = ("listen", "local_address", "local_port")


class Start:
    """One server of the command line, and what it can do again while it runs."""

    def __init__(self, command: str, arguments: argparse.Namespace) -> None:
        self._command = command
        self._gatherer = Gatherer(command, arguments)
        self._salts: SaltMemory | None = None  # as long as the server, and its successors by SIGUSR2
        self._upgrading = False  # one successor is enough: two would both serve, each with limits of its own

    def run(self) -> None:
        """Runs until told to stop. Raises ConfigError or OSError before the first accept."""
        handover = None
        if HANDOVER in os.environ:
            from tunnel.handover import Handover  # noqa: PLC0415

            handover = Handover()
            self._gatherer.uri, self._gatherer.password = handover.left.uri, handover.left.password
            if handover.left.salts is not None:
                self._salts = SaltMemory(fd=handover.left.salts)
        values, warnings = self._gatherer.read()
        self._started = self._values = values  # at the start; and as of the last reload
        self._model = model = MODELS[values["model"]]
        serve = model.load()
        raise_file_limit(values.get("nofile"))
        self._places = listen_places(self._command, values)
        # A supervisor may stop what has only just begun to listen: it waits until that can be obeyed.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        inherited = handover.left.listeners if handover else ()
        sharing = self._workers(values).most if model.reuse_port else 1
        self._listeners = listen(self._places, values["backlog"], values["no_delay"], inherited, sharing)
        flat = [listener for here in self._listeners for listener in here]
        self._account = give_up_privileges(values)
        log.lost.share()
        self._log(values, warnings)
        check_privacy(self._gatherer.secret_files(), flat)
        warn_of_unreadable(self._account, self._gatherer.files())
        service = self._service(values, flat)
        stop = Stop(flat, values["grace"], Renewal(self.reload, self.upgrade))
        limits = Limits(values.get("max_connections"), values.get("max_per_source"))
        self._server = Server(flat, service, stop, Scoreboard(model.name, self._command), limits)
        stop.install()
        for here in self._listeners:
            log.info(f"{self._command} listens on {bound_address(here[0])}, {self._subject(values)}")
        if handover:
            handover.complete()
        elif self._gatherer.password:
            print_first_steps(values["method"], values["password"], bound_address(flat[0]))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        serve(self._server)
        self._server.finish_draining()
        log.info("stopped")

    def reload(self) -> bool:
        """SIGHUP: the values again, for the connections to come. A mistake keeps the old ones."""
        try:
            values, warnings = self._gatherer.read()
            check_privacy(self._gatherer.secret_files(), self._server.listeners)
            service = self._service(values, self._server.listeners)
            self._limit(values)
            self._log(values, warnings)
        except (TunnelError, OSError) as error:
            self._limit(self._values)
            name = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            log.error(f"configuration not read again: {name}{describe(error)}")
            return False
        if changed := self._changed_for_a_restart(values):
            log.warning(f"{', '.join(changed)}: another value takes a restart")
        workers = self._server.service.workers
        if self._model.reuse_port and service.workers != workers:
            log.warning(f"each worker of {self._model.name} has its listener: another number takes a restart")
            service = service._replace(workers=workers)
        set_no_delay(self._server.listeners, values["no_delay"])
        self._server.service = service
        self._values = values
        log.info("configuration read again")
        return True

    def _limit(self, values: Values) -> None:
        """Raises OSError if there are limits for the first time, and no memory or descriptor for them."""
        self._server.limits.change(values.get("max_connections"), values.get("max_per_source"))

    def _changed_for_a_restart(self, values: Values) -> list[str]:
        """What is not as it was at the start, and stays as it was."""
        names = list(RESTART)
        if listen_places(self._command, values) != self._places:
            names += LISTEN_SERVE if self._command == SERVE else LISTEN_CLIENT
        return [name for name in names if values.get(name) != self._started.get(name)]

    def upgrade(self) -> None:
        """SIGUSR2: the program anew, on the same listeners. If that cannot be, this one goes on."""
        if self._upgrading:
            log.warning("SIGUSR2: a new program has been started already")
            return
        self._upgrading = True
        try:
            self._upgrade()
        except (OSError, RuntimeError, ImportError, SyntaxError) as error:  # what is on disk may be newer
            self._upgrade_failed()
            log.error(f"cannot start the new program: {describe(error)}: this one goes on")

    def _upgrade(self) -> None:
        from tunnel.handover import Left, hand_over  # noqa: PLC0415

        listeners = [
            (str(place), [listener.fileno() for listener in here])
            for place, here in zip(self._places, self._listeners, strict=True)
        ]
        salts = None if self._salts is None else self._salts.fileno()
        left = Left(listeners, salts, self._gatherer.uri, self._gatherer.password)
        hand_over(left, self._server.stop.hand_over, self._upgrade_failed)

    def _upgrade_failed(self) -> None:
        self._upgrading = False

    def _log(self, values: Values, warnings: Sequence[str]) -> None:
        """Raises OSError for a log file that cannot be had."""
        log.open(values.get("log_file"))
        log.configure(self._model.name, values["log_level"], values["log_format"] == "json")
        for warning in warnings:
            log.warning(warning)

    def _workers(self, values: Values) -> Workers:
        """Raises ConfigError."""
        model = self._model
        workers = Workers(*(values.get("workers") or model.pool or (1, 1)))
        if model.pool and not model.elastic and workers.least != workers.most:
            asked = f"{workers.least}:{workers.most}"
            raise ConfigError(f"workers is {asked}: expected N, since the pool of {model.name} has one size")
        return workers

    def _service(self, values: Values, listeners: Sequence[socket.socket]) -> Service:
        """Raises ConfigError."""
        command = self._command
        model = self._model
        name = service_of(command, values)
        servers = [] if command == SERVE else server_places(values)
        if (command == FORWARD or name == RELAY) and "target" not in values:
            raise ConfigError("no target: expected --target HOST:PORT")
        way = values.get("relay")
        if way and model.copies and way not in model.copies:
            expected = " or ".join(model.copies)
            raise ConfigError(f"relay {way} does not go with model {model.name}: expected {expected}")
        if name == TUNNEL:
            secret = config.secret_of(values, self._gatherer.path or "command line")
            new_session = self._session_factory(secret, values)
            words = self._rehearsal(secret)
            judge = judge_of(command, listeners, values)
        else:
            from tunnel.services import REHEARSAL, service_factory  # noqa: PLC0415

            new_session = service_factory(name, values.get("target"))
            words = Rehearsal(lambda _: REHEARSAL[0], lambda: REHEARSAL[1], to_server)
            judge = None  # the one target is the choice of whoever started the server
        return Service(
            new_session=new_session,
            dial=Dial(judge, servers, values["connect_timeout"], values["no_delay"]),
            timeouts=Timeouts(
                handshake=values["handshake_timeout"],
                idle=values["timeout"],
                half_closed=min(values["half_closed_timeout"], values["timeout"]),
            ),
            rehearsal=words,
            workers=self._workers(values),
            max_requests=values.get("max_requests"),
            heartbeat=values["heartbeat"],
            copy=values.get("relay") or model.copy or "",
            linger=socks.LINGER if command == LOCAL else inf,
        )

    def _session_factory(self, secret: Secret, values: Values) -> Callable[[], Session]:
        """What makes the Session of each accepted connection. Raises ConfigError, OSError."""
        if self._salts is None:
            # A client end has no file: its server, with the same configuration, would find all salts seen.
            self._salts = SaltMemory(values.get("replay_file") if self._command == SERVE else None)
        fresh = self._salts.add
        if self._command == SERVE:
            return lambda: ServerSession(secret, fresh)
        if self._command == LOCAL:
            return lambda: SocksSession(secret, fresh)
        target: Address = values["target"]
        return lambda: ForwardSession(secret, target, fresh)

    def _rehearsal(self, secret: Secret) -> Rehearsal:
        """What both sides of a connection to this end could say (models/_rehearsal.py tells why)."""

        def sealed(plain: bytes) -> bytes:
            return bytes(Sealer(secret, plain).buffer_updated(0))

        if self._command == SERVE:
            return Rehearsal(lambda target: sealed(pack(target) + b"x"), lambda: b"x", lambda _: Dial())
        opening = socks.request if self._command == LOCAL else (lambda _: b"x")
        return Rehearsal(opening, lambda: sealed(b"x"), to_server)

    def _subject(self, values: Values) -> str:
        name = service_of(self._command, values)
        return f"method {values['method']}" if name == TUNNEL else f"service {name}"


def to_server(server: Address) -> Dial:
    """Goes there, whatever the target."""
    return Dial(servers=[server])


def judge_of(command: str, listeners: Sequence[socket.socket], values: Values) -> Judge | None:
    """What says where users may go; None on loopback, whose users could go there anyway."""
    trusts, denied = on_loopback(listeners), values.get("deny", ())
    if command != SERVE or (trusts and not denied):
        return None
    from tunnel.judge import Judge  # noqa: PLC0415 - 4 ms that a server on loopback saves

    return Judge(values.get("allow", ()), is_own, denied, trusts=trusts)


def check_privacy(paths: Sequence[str], listeners: Sequence[socket.socket]) -> None:
    """A configuration or URI that others can read: a warning on loopback, an error elsewhere."""
    for path in filter(config.readable_by_others, paths):
        text = f"{path}: others can read it: expected a file that is yours alone (chmod 600)"
        if not on_loopback(listeners):
            raise ConfigError(text)
        log.warning(text)


def give_up_privileges(values: Values) -> tuple[str | None, str | None]:
    """Becomes the user and the group that were asked for, which it returns. Raises ConfigError, OSError."""
    user, group = asked = values.get("user"), values.get("group")
    if asked != (None, None):
        from tunnel.privileges import find_account  # noqa: PLC0415 - ctypes, for those who give something up

        find_account(user, group).become()
    return asked


def warn_of_unreadable(account: tuple[str | None, str | None], paths: Sequence[str]) -> None:
    """What root has read, and a reload could not."""
    for path in paths if account != (None, None) else ():
        if not os.access(path, os.R_OK):
            log.warning(
                f"{path}: {account[0] or account[1]} cannot read it, so a reload will keep what there is"
            )


def raise_file_limit(wanted: int | None) -> None:
    """RLIMIT_NOFILE: as configured, else as far as it goes without being root."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted or hard, max(hard, wanted or 0)))
    except ValueError:
        raise ConfigError(f"nofile is {wanted}: expected at most {hard}, the hard limit here") from None


def print_first_steps(method: str, password: str, address: Address) -> None:
    """What a newcomer pastes next."""
    uri = config.format_uri(method, password, address)
    host = str(address).rpartition(":")[0]
    of_any = host in ("0.0.0.0", "[::]")  # noqa: S104 - nothing is bound here
    hint = f"Elsewhere, put this machine's address in the place of {host}.\n" if of_any else ""
    print(
        f"No password was given, so here is a fresh one; it ends with this server.\n{hint}\n"
        f"  server   {uri}\n"
        f"  client   echo '{uri}' | tunnel local --server -\n"
        "  try it   curl --proxy socks5h://127.0.0.1:1080 http://example.com/\n",
        flush=True,
    )
