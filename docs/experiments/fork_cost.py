"""What an import costs a fork: CPU time and page faults of fork, exit and wait, after different imports.

    python docs/experiments/fork_cost.py

Each line is a fresh interpreter that imports something (the last ones: a `fork` server, and what could
come with it), freezes the garbage collector's view of it,
and forks 300 children which exit at once. The difference between lines is what a server that forks
pays per connection for having imported more. Printed in docs/performance.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORKS = 300
ROOT = Path(__file__).parents[2]
AEAD = "cryptography.hazmat.primitives.ciphers.aead"
SERVER = "tunnel.cli tunnel.start models.fork"
IMPORTS = (
    "",
    "socket",
    f"socket {AEAD}",
    f"socket {AEAD} argparse",
    f"socket {AEAD} ctypes",
    f"socket {AEAD} threading",
    f"socket {AEAD} logging",
    f"socket {AEAD} asyncio",
    SERVER,
    f"{SERVER} shutil",
    f"{SERVER} random",
)

CHILD = """
import gc, os, resource, sys
sys.path.insert(0, sys.argv[2])
for name in sys.argv[3:]:
    __import__(name)
gc.collect()
gc.freeze()
forks = int(sys.argv[1])
def spent():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, children.ru_minflt
seconds, faults = spent()
for _ in range(forks):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
after, faults_after = spent()
mappings = sum(1 for _ in open("/proc/self/maps"))
print((after - seconds) / forks * 1e6, (faults_after - faults) / forks, mappings)
"""


def main() -> None:
    print(f"{'imported':66}{'us/fork':>8}{'faults/child':>14}{'mappings':>10}")
    for names in IMPORTS:
        command = [sys.executable, "-I", "-c", CHILD, str(FORKS), str(ROOT), *names.split()]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        micros, faults, mappings = map(float, ended.stdout.split())
        print(f"{names or 'nothing':66}{micros:8.0f}{faults:14.0f}{mappings:10.0f}")


if __name__ == "__main__":
    main()
