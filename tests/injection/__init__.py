"""System calls that fail because strace says so: what the kernel does once a year, on demand.

Rules: a server is attached to while it runs, so the calls that are counted are those of one short exchange.
A call that is made to fail is not made: after a `close` that failed the descriptor is still open. So what is
asked afterwards is only what every server must do: serve the next client, and not stumble.
"""
