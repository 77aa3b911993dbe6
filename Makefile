# Everything a person types: `make demo`, `make test`. Needs python3 (3.11 or newer), make and a package registry.
#
# PYTHON=python3.12      another interpreter
# PIP_ARGS="..."         passed on to pip, for instance --extra-index-url https://download.pytorch.org/whl/cpu for a torch
#                        without CUDA (a far smaller download)
# DEMO_ARGS="--n 12"     passed on to `vlm demo`; PYTEST_ARGS="tests/knowledge" passed on to pytest
# WORKERS=4              processes that run tests side by side, each with one thread and up to 2 GB (default 2)

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format clean

help:
	@echo "make demo       install, run the shipped checkpoint on 6 phantom studies, write demo/index.html"
	@echo "make test       install with the test tools, run the quick tests"
	@echo "make test-slow  run the slow tests as well"
	@echo "make lint       style, formatting and types"
	@echo "make clean      remove the environment, caches and the demo's output"

# A stamp is written only after its step succeeded, so an interrupted installation is taken up again, and a finished one is
# not repeated until pyproject.toml changes. The test installation holds all that the demo needs.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or say which: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version 2>&1) is too old; Radscribe needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 2; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; } >/dev/null 2>&1 \
		|| { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment; install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.made
	$(PIP) -q -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.made
	$(PIP) -q -e '.[dev]'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	@$(BIN)/vlm demo --out demo $(DEMO_ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow or not slow" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
