"""Thread: two threads for each client, one for each direction.

    +---------------------------- the only process ----------------------------+
    |  main thread            client's thread         its second thread        |
    |  accept, start ---+-->  opening, dial                                    |
    |     ^             |     accepted == up ==> dialled                       |
    |     |             |                        accepted <== down == dialled  |
    |     `-------------+-->  (the next client's threads)                      |
    +--------------------------------------------------------------------------+

UNP 30.10, with 16.2's two directions. Every thread blocks in recv or in send and in nothing else:
the copy is two lines, and the scheduler is the kernel's.

Differs from `fork`: the new thread shares this process's memory, so nothing is copied, a start costs
a tenth, and nothing but care keeps clients apart.
Good when: the code must be simple, and clients are hundreds rather than thousands.
Breaks when: many threads want to compute at once: there is one interpreter lock.
"""

from __future__ import annotations

import socket
import threading

from models._pump import serve_client
from models._server import Server
from tunnel.log import log


def serve(server: Server) -> None:
    threads: set[threading.Thread] = set()
    main = server.scoreboard.take()
    main.own("tunnel: thread")

    def serve_and_leave(accepted: socket.socket) -> None:
        slot = server.scoreboard.take()
        slot.own()
        try:
            serve_client(server, slot, accepted)
        finally:
            server.scoreboard.give_back(slot)
            threads.discard(threading.current_thread())

    # fig: accept loop
    while accepted := server.accept(main):
        thread = threading.Thread(target=serve_and_leave, args=[accepted], daemon=True)
        threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            log.error(f"client dropped: {error}")
            threads.discard(thread)
            accepted.close()
    # end fig
    for thread in list(threads):
        thread.join()
