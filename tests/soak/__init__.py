"""A long day in minutes: mixed load and trouble over one server, and at the end nothing is lost or left over.

    clients    what a client does with one connection, and how it is told that all went well
    run        clients at work, somebody who kills and reloads, and the comparison: `make soak`

docs/faults.md has the figures.
"""
