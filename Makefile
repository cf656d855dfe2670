# Every target sets itself up: python3 with venv is all that a machine needs. Tests and demo run on a CPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
# One thread a test process: two processes on two cores, and more would spin while they wait for each other.
SINGLE := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: setup demo test test-slow lint format clean

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/splatlearn demo --out demo

test: setup
	$(SINGLE) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not slow"

test-slow: setup
	$(SINGLE) $(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .benchmarks .hypothesis
