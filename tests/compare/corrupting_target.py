"""A target that now and then sends a byte other than it should: for the tests alone.

python corrupting_target.py down       the 5,000th byte of each reply is wrong
python corrupting_target.py up         it finds fault with what is right, as if the server had changed it
"""

from __future__ import annotations

import sys

from compare.exchange import REPLY, REQUEST
from compare.target import Connection, main

WRONG = 5000


class WrongDown(Connection):
    def received(self, view: memoryview) -> None:
        super().received(view)
        if len(self.pending) > WRONG:
            changed = bytearray(self.pending)
            changed[REPLY.size + WRONG] ^= 1
            self.pending = memoryview(changed)


class WrongUp(Connection):
    def received(self, view: memoryview) -> None:
        changed = bytearray(view)
        if len(changed) > REQUEST.size + 10:
            changed[-1] ^= 1
        super().received(memoryview(changed))


if __name__ == "__main__":
    main({"down": WrongDown, "up": WrongUp}[sys.argv[1]])
