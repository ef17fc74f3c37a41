# make compare   set up, compare all models on this machine, write ./results/.../report.html
# make bench     set up, measure what the goals for speed ask, and say which are met (20 minutes)
# make bench-docs   the same, and put the table into docs/performance.md
# make test      set up, install what the tests need, run lint, types and tests
# make faults    every fault of docs/faults.md against every model; writes the table there
# make soak      mixed load and trouble over one server, MODEL=prefork, MINUTES=10 (docs/faults.md)
# make fuzz      libFuzzer over the core, FUZZ_SECONDS=60 for each harness, FUZZ= for some (docs/fuzzing.md)
#
# Everything lives in .venv; system packages are installed only by root, and only for the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests mostly wait, for processes and sockets: several share a core well.
PARALLEL ?= -n 5 --dist worksteal
FUZZ_SECONDS ?= 60
MODEL ?= prefork
MINUTES ?= 10
# Thousands of processes start in a test run: where the environment forbids to keep bytecode, each would
# compile all of it anew.
export PYTHONDONTWRITEBYTECODE :=
SYSTEM_PACKAGES := shadowsocks-libev curl chromium faketime nftables iproute2 strace

.PHONY: help compare bench bench-docs test test-slow faults fuzz soak lint system clean wheel

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11: try make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "make: no venv module: apt-get install python3-venv"; exit 1; }

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[loops]'
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/installed-for-fuzz: $(VENV)/installed-for-tests pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

compare: $(VENV)/installed
	$(BIN)/compare run --quick

bench: $(VENV)/installed
	$(BIN)/compare bench

bench-docs: $(VENV)/installed
	$(BIN)/compare bench --into docs/performance.md

test: $(VENV)/installed-for-tests system lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(VENV)/installed-for-tests system
	$(BIN)/python -m pytest $(PARALLEL) -m slow

# Four at once: more would make the machine itself the fault.
faults: $(VENV)/installed-for-tests system
	$(BIN)/python -m pytest tests/faults -m faults -n 4 --table docs/faults.md

fuzz: $(VENV)/installed-for-fuzz
	$(BIN)/python -m tests.fuzz.run $(FUZZ) --seconds $(FUZZ_SECONDS)

soak: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.soak.run --model $(MODEL) --minutes $(MINUTES)

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Peers and browser for the tests. Without root it only says what is missing; the tests then skip it.
system:
	@missing=""; for package in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q "ok installed" || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "make: tests that need$$missing will be skipped: sudo apt-get install$$missing"; fi

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
