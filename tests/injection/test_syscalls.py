"""Every system call of a short exchange fails once, in every model; the next client is served all the same.

    for each call, each errno that it has in real life, and each N until the exchange makes no more:
        strace attaches --> one exchange, which may fail --> strace lets go --> a transfer within 2 s

`ENDS` names what a server does not survive, and why; it then says so in a line and has an exit code.
`STUMBLES` names where somebody else's loop prints a traceback, and goes on; `FORGETS` where it leaves a
socket open.
"""

from __future__ import annotations

import os
import select
import signal
from math import inf
from pathlib import Path
from typing import NamedTuple

import pytest

from models import MODELS
from tests.harness import socks
from tests.harness.rig import FORWARD, LOCAL, SERVE, Rig
from tests.harness.tree import child_pids, members, wait_until
from tests.harness.wire import WrongTag
from tests.injection.strace import Failed, Injection, needs_strace

HURRY = 1.0  # seconds that a client of a spoiled exchange waits for anything
LEISURE = 10.0  # and one of an exchange that must succeed
COUNTINGS = 3
WORKERS = 2
REQUEST, REPLY = b"x" * 3000, b"y" * 5000
ERRORS = {  # what each call may really fail with (its manual page), as the kernel names calls today
    "accept4": ("ECONNABORTED", "EMFILE", "ENOMEM", "EPROTO"),
    "recvfrom": ("ECONNRESET", "ETIMEDOUT"),
    "read": ("ECONNRESET", "ETIMEDOUT"),  # what libuv has for recv
    "readv": ("ECONNRESET", "ETIMEDOUT"),
    "recvmsg": ("ECONNRESET", "ENOMEM"),
    "sendto": ("EPIPE", "ENOBUFS"),
    "write": ("EPIPE", "ENOBUFS"),
    "writev": ("EPIPE", "ENOBUFS"),
    "sendmsg": ("EPIPE", "ENOBUFS"),
    "connect": ("ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL"),
    "socket": ("EMFILE", "ENOBUFS"),
    "clone,clone3,fork,vfork": ("EAGAIN", "ENOMEM"),
    "epoll_wait,epoll_pwait": ("EINTR",),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "poll,ppoll,select,pselect6": ("EINTR", "ENOMEM"),
    "setsockopt": ("ENOBUFS", "EINVAL"),
    "shutdown": ("ENOTCONN",),
    "close": ("ECONNRESET",),  # of a socket; Linux itself has none for it
    "fcntl": ("ENOLCK",),
    "getpeername": ("ENOTCONN",),
    "dup,dup2,dup3": ("EMFILE",),
}
ROLES = {  # one of each must have failed on a connection, or the model makes calls that are not listed here
    "accept": {"accept4"},
    "receive": {"recvfrom", "read", "readv", "recvmsg"},
    "send": {"sendto", "write", "writev", "sendmsg"},
}
ENDS: dict[tuple[str, str], str] = {  # with EX_OSERR and a line, if the call was not on a connection
    ("sigio", "recvfrom"): "reads signals from a socket pair of its own, which nobody can reset",
    ("prefork-fdpass", "recvfrom"): "hears from its workers over socket pairs of its own, likewise",
}
ABORTS = {("uvloop", "epoll_ctl"): "libuv calls abort(3)"}
STUMBLES: dict[tuple[str, str], str] = {
    ("asyncio", "epoll_ctl"): "its selector is not ours: the loop prints the callback that failed",
    ("tornado", "epoll_ctl"): "the same loop",
}
FORGETS = {
    ("uvloop", "setsockopt"): "0.23 forgets a socket that it could not set TCP_NODELAY on, and it stays open",
}
QUICK = {"accept4": ("EMFILE",), "recvfrom": ("ECONNRESET",), "sendto": ("EPIPE",), "socket": ("EMFILE",)}
ONE_OF_EACH_BODY = ("fork", "epoll", "trampoline", "uvloop", "tornado")

# fcntl gives locks back, too. An unlock that is not made keeps everybody out, and Linux has no error for it.
BROKEN = "a record is missing"  # which the client notices by the next one's tag
UNLOCKED = "the lock was not given back"


class Case(NamedTuple):
    calls: str
    error: str


CASES = [Case(calls, error) for calls, errors in ERRORS.items() for error in errors]


def exchange(rig: Rig, patience: float = HURRY) -> str:
    """A request, a reply, and both ends; as much of it as can be had. What was wrong with that, in words."""
    try:
        near = rig.near(first=REQUEST)
        near.sock.settimeout(patience)
        rig.listener.settimeout(patience)
        far = rig.far()
        far.sock.settimeout(patience)
        if far.receive_exactly(len(REQUEST)) != REQUEST:
            return "another request arrived"
        far.send(REPLY)
        if near.receive_exactly(len(REPLY)) != REPLY:
            return "another reply arrived"
        near.finish()
        far.receive_all()
        far.finish()
        near.receive_all()
    except (OSError, AssertionError, socks.Refused):
        pass  # this client may be lost
    except WrongTag as error:
        return f"{BROKEN}: {error}"
    finally:
        rig.close_streams()
    return ""


def pids(rig: Rig) -> list[int]:
    """Once there are no more of them than when nobody is served."""
    wanted = len(MODELS[rig.model].pool or ()) and WORKERS
    wait_until(lambda: len(child_pids(rig.pid)) <= wanted, 5.0, "the children of earlier clients have ended")
    return [process.pid for process in members(rig.pid)]


def calls_of_an_exchange(rig: Rig) -> dict[str, int]:
    """How often the busiest process or thread makes each of these calls.

    On a busy machine a thread may come to its next accept only after strace has let go of it.
    """
    most = dict.fromkeys(ERRORS, 0)
    for _ in range(COUNTINGS):
        with Injection(pids(rig), ",".join(ERRORS)) as counting:
            exchange(rig, LEISURE)
        most = {calls: max(most[calls], counting.busiest_of(calls.split(","))) for calls in ERRORS}
    return most


def spoil(rig: Rig, case: Case, when: int) -> tuple[list[Failed], str]:
    """One exchange in which that call fails: which did, and what must not have come of it."""
    with Injection(pids(rig), case.calls, case.error, when) as injection:
        trouble = exchange(rig)
    if any("F_UNLCK" in call.line for call in injection.failed):
        return [], UNLOCKED
    return injection.failed, trouble or survives(rig)


def survives(rig: Rig) -> str:
    """Serves the next client and has not stumbled, or what is wrong."""
    if not rig.tunnel.running:
        return f"ended: {rig.tunnel.log().splitlines()[-1]}"
    rig.listener.settimeout(2)
    try:
        rig.transfer(size=2000)
    except (AssertionError, OSError, socks.Refused) as error:
        return f"next client: {type(error).__name__} {error}; log: {rig.tunnel.log()[-300:]}"
    finally:
        rig.close_streams()
    said = rig.tunnel.log()
    return f"traceback: {said[said.index('Traceback') :][-600:]}" if "Traceback" in said else ""


def expected(rig: Rig, case: Case, failed: list[Failed], trouble: str) -> bool:
    """One of the few things that are as they are, and said in the right way."""
    if trouble == UNLOCKED:
        return True
    key = rig.model, case.calls
    if key in STUMBLES:
        return trouble.startswith(("traceback", BROKEN))
    if key in FORGETS:  # at a client end, the target finds it in its queue before the next client's
        return trouble.startswith("next client")
    if key in ABORTS:
        return rig.tunnel.wait(2.0) == -signal.SIGABRT
    if key not in ENDS or all(call.on_tcp for call in failed):
        return False
    said = rig.tunnel.matching("^tunnel serve: ")
    return rig.tunnel.wait(2.0) == os.EX_OSERR and len(said) == 1


def make(directory: Path, model: str, end: str) -> Rig:
    pool = ["--workers", str(WORKERS)] if MODELS[model].pool else []
    rig = Rig(directory, model, end, *pool, config={"handshake_timeout": 2, "timeout": 3})
    rig.transfer()
    return rig


def try_all(
    directory: Path, model: str, end: str, cases: list[Case], most: float = inf
) -> tuple[list[str], list[Failed]]:
    """What went wrong, a line each, and the calls that were made to fail."""
    wrong, failed = [], []
    rig = make(directory, model, end)
    try:
        made = calls_of_an_exchange(rig)
        for case in cases:
            for when in range(1, int(min(made[case.calls], most)) + 1):
                calls, trouble = spoil(rig, case, when)
                failed += calls
                if not trouble:
                    continue
                if not expected(rig, case, calls, trouble):
                    wrong.append(f"{model} {end}, {case.calls} number {when} {case.error}: {trouble}")
                rig.close()
                rig = make(directory, model, end)
    finally:
        rig.close()
    return wrong, failed


def try_every_call(directory: Path, model: str, end: str) -> None:
    wrong, failed = try_all(directory, model, end, CASES)
    assert not wrong, "\n".join(wrong)
    assert len(failed) > 20
    on_connections = {call.name for call in failed if call.on_tcp}
    for role, names in ROLES.items():
        assert names & on_connections, f"no {role} of {model} {end} has failed"


@pytest.mark.parametrize("model", ["fork", "epoll"])
def test_a_call_that_fails_costs_its_client_at_most(model: str, tmp_path: Path) -> None:
    needs_strace()
    cases = [Case(calls, error) for calls, errors in QUICK.items() for error in errors]
    wrong, failed = try_all(tmp_path, model, SERVE, cases, 2)
    assert not wrong, "\n".join(wrong)
    assert len(failed) >= len(cases)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_call_that_fails_costs_its_client_at_most(model: str, tmp_path: Path) -> None:
    needs_strace()
    try_every_call(tmp_path, model, SERVE)


def asks_a_name(rig: Rig) -> bool:
    """A client whose target is a name is served; False if it is refused."""
    near = rig.near(target=("localhost", rig.far_place.port), first=REQUEST)
    near.sock.settimeout(LEISURE)
    if not select.select([rig.listener, near.sock], [], [], LEISURE)[0] or near.how_it_ends(0.0) != "open":
        return False
    return rig.far().receive_exactly(len(REQUEST)) == REQUEST


@pytest.mark.parametrize("model", ["prefork", "poll", "trampoline", "asyncio"])
def test_without_a_thread_for_a_name_its_client_is_refused_and_no_other(model: str, tmp_path: Path) -> None:
    needs_strace()
    rig = make(tmp_path, model, SERVE)
    try:
        with Injection(pids(rig), "clone,clone3", "EAGAIN") as injection:
            asks_a_name(rig)
        rig.close_streams()
        assert injection.failed
        assert not survives(rig)
        assert asks_a_name(rig), rig.tunnel.log()
        rig.close_streams()
        assert len(rig.tunnel.matching("cannot connect to localhost.*: can't start new thread")) == 1
    finally:
        rig.close()


@pytest.mark.parametrize("model", ["prefork", "poll", "epoll", "asyncio"])
def test_without_a_lock_for_its_salt_a_silent_client_is_cut_and_no_other(model: str, tmp_path: Path) -> None:
    """A client end sends its salt although the client has not said a word."""
    needs_strace()
    rig = make(tmp_path, model, FORWARD)
    try:
        with Injection(pids(rig), "fcntl", "ENOLCK") as injection:
            assert rig.silent().how_it_ends(LEISURE) in ("FIN", "RST")
        rig.close_streams()
        assert len(injection.failed) == 1
        assert not survives(rig)
        assert len(rig.tunnel.matching("cut: No locks available")) == 1
    finally:
        rig.close()


@pytest.mark.parametrize(("error", "said"), [("EAGAIN", "Resource temp"), ("ENOMEM", "Cannot allocate mem")])
def test_without_a_process_for_the_way_back_a_client_is_cut_and_told_why(
    error: str, said: str, tmp_path: Path
) -> None:
    needs_strace()
    with Rig(tmp_path, "iterative", SERVE, "--relay", "fork") as rig:
        rig.transfer()
        with Injection([rig.pid], "clone,clone3,fork,vfork", error) as injection:
            exchange(rig)
        assert injection.failed
        assert not survives(rig)
        assert len(rig.tunnel.matching(f"cut: no process for the direction back: {said}")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_OF_EACH_BODY)
def test_every_call_of_a_client_end_that_fails_costs_its_client_at_most(model: str, tmp_path: Path) -> None:
    needs_strace()
    try_every_call(tmp_path, model, LOCAL)


@pytest.mark.parametrize(("model", "receive"), [("asyncio", "recvfrom"), ("uvloop", "read")])
def test_what_comes_after_a_receive_that_failed_arrives_and_then_both_sides_are_reset(
    model: str, receive: str, tmp_path: Path
) -> None:
    """It could have been a send: these loops do not say. So the rest is read, from a new transport."""
    needs_strace()
    with make(tmp_path, model, SERVE) as rig:
        near, far = rig.open()
        with Injection(pids(rig), receive, "ECONNRESET") as injection:
            far.send(REPLY)
            assert near.receive_exactly(len(REPLY)) == REPLY
            far.send(REPLY)
            assert near.receive_exactly(len(REPLY)) == REPLY
        assert [call.on_tcp for call in injection.failed] == [True]
        far.finish()
        assert (near.how_it_ends(2.0), far.how_it_ends(2.0)) == ("RST", "RST")
        rig.tunnel.wait_for_lines("cut: Connection reset by peer")
        assert survives(rig) == ""
        assert len(rig.tunnel.lines) == 2, rig.tunnel.log()


def test_client_that_cannot_be_passed_on_is_dropped_and_no_worker_with_it(tmp_path: Path) -> None:
    """Every attempt fails, with each worker that is free; afterwards both of them are there for others."""
    needs_strace()
    with make(tmp_path, "prefork-fdpass", SERVE) as rig:
        workers = child_pids(rig.pid)
        with Injection([rig.pid], "sendmsg", "ENOBUFS", when="1+") as injection:
            assert rig.near(first=REQUEST).how_it_ends(2.0) in ("FIN", "RST")
        assert injection.failed
        rig.tunnel.wait_for_lines("client dropped: cannot pass it on: No buffer space available")
        pairs = [rig.open() for _ in range(WORKERS)]
        for near, far in pairs:
            near.send(REQUEST)
            assert far.receive_exactly(len(REQUEST)) == REQUEST
        assert child_pids(rig.pid) == workers
