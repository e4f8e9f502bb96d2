# Two commands: `make rehearse` runs the whole system on generated hospitals, `make test` the tests. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Two processes more than there are cores, and four at most: a test in two waits for servers that it has started.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, 2 + (os.cpu_count() or 1)))')
# One thread per process: tests run side by side, and the simulator's hospitals do (which it sees to itself).
test test-slow: export OMP_NUM_THREADS := 1
# Where it is set, every process compiles konsil again, and pytest rewrites all asserts in each of its own.
unexport PYTHONDONTWRITEBYTECODE
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup rehearse federation test test-slow check clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "konsil needs Python 3.11 or newer; with another name: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,tracking]'
	touch $@

rehearse: setup
	$(BIN)/konsil-simulate $(ARGS)

federation: setup
	$(BIN)/python -m simulation.federation $(ARGS)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu'

test-slow: setup
	$(BIN)/python -m pytest -m 'slow or gpu'

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
