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
Breaks when: many threads want to compute at once: there is one interpreter lock. Or when the system
has no more threads to give: then the client that would need them is dropped.
"""

from __future__ import annotations

from models._server import Server
from models._threads import ClientThreads


def serve(server: Server) -> None:
    clients = ClientThreads(server)
    slot = server.scoreboard.take()
    slot.own("tunnel: thread")
    # fig: accept loop
    while accepted := server.accept(slot):
        clients.start(accepted)
    # end fig
    clients.join()
