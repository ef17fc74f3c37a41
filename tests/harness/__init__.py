"""Tools that the process-level tests share.

    wire        SIP004 once more, written from the documents and not from tunnel/
    stream      one end of a connection, plain or sealed, with the same few verbs
    process     a server as a user starts it, and its log
    tree        what a process and its children hold: descriptors, threads, zombies, CPU, memory
    rig         a server under test between two ends that the test holds
    targets     echo, sink, source, greeter: servers for whole chains
    socks       a SOCKS5 client

Rules: nothing here imports tunnel or models, so a mistake there cannot hide itself. Every wait is for
a signal and bounded; traffic stays on 127.0.0.0/8 and ::1.
"""
