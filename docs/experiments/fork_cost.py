"""What an import costs a fork: CPU time and page faults of fork, exit and wait, after different imports.

    python docs/experiments/fork_cost.py

Each line is a fresh interpreter that imports something, freezes the garbage collector's view of it,
and forks 300 children which exit at once. The difference between lines is what a server that forks
pays per connection for having imported more. Printed in docs/performance.md.
"""

from __future__ import annotations

import subprocess
import sys

FORKS = 300
AEAD = "cryptography.hazmat.primitives.ciphers.aead"
IMPORTS = (
    "",
    "socket",
    f"socket {AEAD}",
    f"socket {AEAD} argparse",
    f"socket {AEAD} ctypes",
    f"socket {AEAD} threading",
    f"socket {AEAD} logging",
    f"socket {AEAD} asyncio",
)

CHILD = """
import gc, os, resource, sys
for name in sys.argv[2:]:
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
print((after - seconds) / forks * 1e6, (faults_after - faults) / forks)
"""


def main() -> None:
    print(f"{'imported':66}{'us/fork':>8}{'faults/child':>14}")
    for names in IMPORTS:
        command = [sys.executable, "-I", "-c", CHILD, str(FORKS), *names.split()]
        micros, faults = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(f"{names or 'nothing':66}{float(micros):8.0f}{float(faults):14.0f}")


if __name__ == "__main__":
    main()
