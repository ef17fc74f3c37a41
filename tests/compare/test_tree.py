"""CPU and memory of a tree of processes, against a tree that says itself what it used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compare import tree
from compare.interrupt import Interrupt

# Burns CPU in itself, in a thread that ends, in children that end and in a child that stays; then
# says how much that was by its own clocks, and waits.
BURNER = """
import os, resource, sys, threading, time

def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

thread = threading.Thread(target=burn, args=(0.1,))
thread.start()
thread.join()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        burn(0.01)
        os._exit(0)
    os.waitpid(pid, 0)
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    burn(0.1)
    os.write(writing, repr(time.process_time()).encode())
    sys.stdin.read()
    os._exit(0)
staying = float(os.read(reading, 100))
dead = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.process_time() + dead.ru_utime + dead.ru_stime + staying, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def burner() -> Iterator[tuple[int, float]]:
    process = subprocess.Popen(
        [sys.executable, "-c", BURNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield process.pid, float(process.stdout.readline())
    finally:
        process.communicate("")


def test_cpu_counts_threads_children_and_the_dead(burner: tuple[int, float], interrupt: Interrupt) -> None:
    pid, own = burner
    settled = tree.settle(interrupt, pid)
    assert settled.quiet
    assert settled.usage.processes == 2
    assert own > 0.4
    assert settled.usage.cpu == pytest.approx(own, abs=2 * tree.TICK + 0.005)
    assert settled.usage.user + settled.usage.system == pytest.approx(own, abs=6 * tree.TICK)


def test_memory_is_shared_out(burner: tuple[int, float]) -> None:
    """Parent and child share most pages: together less than twice one of them."""
    pid, _ = burner
    child = tree.descendants(pid)[1]

    def mappings(name: str) -> int:
        """The same, from the kernel's long list of mappings."""
        return sum(
            int(line.split()[1]) * 1024
            for process in (pid, child)
            for line in Path(f"/proc/{process}/smaps").read_text().splitlines()
            if line.startswith(name)
        )

    both = tree.pss(pid)
    assert both == pytest.approx(mappings("Pss:"), rel=0.05)
    assert both < 0.9 * mappings("Rss:")


def test_a_process_that_has_ended_is_told() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        tree.usage(process.pid)
    with pytest.raises(ProcessLookupError):
        tree.pss(process.pid)


def test_settling_waits_for_children_to_go(interrupt: Interrupt) -> None:
    script = (
        "import os, time\nif os.fork() == 0:\n    time.sleep(0.3)\n    os._exit(0)\nos.wait()\ntime.sleep(9)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        try:
            while tree.usage(process.pid).processes < 2:
                pass
            assert tree.settle(interrupt, process.pid, at_most=1).usage.processes == 1
        finally:
            process.kill()


def test_settling_gives_up_on_what_is_never_quiet(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:

        def wait_until_it_has_run(*_: object) -> None:
            """On a busy machine it may not come to it between two looks."""
            before = tree.usage(process.pid).cpu
            while tree.usage(process.pid).cpu < before + 2 * tree.QUIET:
                pass

        monkeypatch.setattr(interrupt, "wait", wait_until_it_has_run)
        try:
            assert not tree.settle(interrupt, process.pid, patience=0.1).quiet
        finally:
            process.kill()
