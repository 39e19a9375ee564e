# Set-up in two commands: `make demo` runs the main job, `make test` passes the tests. Each makes
# .venv first; the stamps in it make a second call immediate and a changed pyproject reinstall.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= demo-run
# Tests run on this many processes, each on one thread: they are many small models.
WORKERS ?= 2
PYTEST_FLAGS ?=

.PHONY: help demo test lint bench clean

help:
	@echo 'make demo    make .venv and run the demo (about 10 minutes on 2 cores)'
	echo 'make test    make .venv; ruff, mypy, pytest'
	echo 'make lint    ruff and mypy only'
	echo 'make bench   step time and memory against PEFT and bitsandbytes'
	echo 'make clean   remove .venv and caches'

demo: $(VENV)/.stamp-run
	@$(BIN)/rango demo --output $(DEMO_OUTPUT)

test: lint
	@export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(PYTEST_FLAGS)

lint: $(VENV)/.stamp-test
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.stamp-test
	@$(BIN)/python benchmarks/train_step.py

clean:
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/rango.egg-info
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The constraint pins torch, so that pip looks for no newer one; a CPU build at hand is preferred.
$(VENV)/.stamp-run: pyproject.toml constraints.txt | $(VENV)/.stamp-python
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.stamp-test: pyproject.toml constraints.txt | $(VENV)/.stamp-python
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev,bench]'
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-python:
	@for python in python3.11 python3; do
	  if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	    if ! "$$python" -m venv $(VENV); then
	      echo "$$python -m venv failed; install its venv module (Debian: python3.11-venv)" >&2
	      exit 1
	    fi
	    touch $@
	    exit 0
	  fi
	done
	echo "Rango needs Python 3.11; found $$(python3 --version 2>&1 || echo none)." >&2
	echo "Install it so that 'python3.11' is on the PATH, then run make again." >&2
	exit 1
