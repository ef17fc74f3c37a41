"""Faults from outside: every row of docs/faults.md, over every model that it applies to.

    row n   -->  a server, as a process          case.py      ours, by model; peers.py: somebody else's
                 the fault                       test_*.py    network, starve, between, probes: what with
                 the right reaction              test_*.py
                 what holds after every row      case.py      aftermath()
            -->  a cell                          table.py     ok, or why not

    pytest tests/faults                  most rows, each at a model or two (also part of `make test`)
    pytest tests/faults -m faults        every cell; `make faults` also writes docs/faults.md

Rules: a row provokes its fault with real processes and sockets, and says in its docstring how. What
tests/conformance checks already is called from here, not written again. Peers are recorded, not judged.
"""
