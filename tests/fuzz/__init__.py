"""Rubbish for the core: whatever comes in, only a ProtocolError or a ConfigError may come out.

    machines     what can be done to a stream or a session, and what must hold after it
       |---- test_machines     hypothesis chooses: short stories, made shorter when one fails
       `---- harnesses         bytes choose: an input is a program for a machine, or is fed in as it is
                |---- test_corpus     each file of corpus/ once, in `make test`
                `---- run             libFuzzer (atheris) looks for inputs that reach new code: `make fuzz`
    seeds        writes the first inputs of corpus/: whole streams of all three methods, by tests/core/wire

Rules: a harness decides by itself whether what happened was right, and says so by an AssertionError; it
is no excuse for an exception that the core did not mean. docs/fuzzing.md tells how to run it.
"""
