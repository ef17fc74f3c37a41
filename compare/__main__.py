"""The command `compare`, also as `python -m compare`.

Rules: nothing is imported before Ctrl-C is an end without a traceback.
"""

import signal
import sys


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from compare.cli import main as run  # noqa: PLC0415 - it takes a while

    return run()


if __name__ == "__main__":
    sys.exit(main())
