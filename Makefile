# Set-up in two commands: `make demo` runs the main job, `make test` passes the tests. Each makes
# .venv first; the stamps in it make a second call immediate, a changed pyproject reinstall, and a
# changed kernel compile.

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

PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
KERNELS := CMakeLists.txt $(wildcard src/rango/kernels/csrc/*)
# Installed beside the package instead of anew for each build, which then compiles only what changed.
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
# Rango installs without its kernels where they don't compile; to be tested, they must (if anything
# here compiles at all).
STRICT = $(shell command -v "$${CXX:-c++}" >/dev/null && echo --config-settings=wheel.cmake=true)

.PHONY: help demo test lint bench bench-quick clean

help:
	@echo 'make demo    make .venv and run the demo (about 10 minutes on 2 cores)'
	echo 'make test    make .venv; ruff, mypy, pytest'
	echo 'make lint    ruff and mypy only'
	echo 'make bench   everything against PEFT, bitsandbytes and TRL (some three hours)'
	echo 'make bench-quick  the same in small, about 7 minutes'
	echo 'make clean   remove .venv, builds and caches'

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
	@$(BIN)/python benchmarks/run_all.py || failed=$$?
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/page.py
	exit $${failed:-0}

bench-quick: $(VENV)/.stamp-test
	@$(BIN)/python benchmarks/run_all.py --quick

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The constraint pins torch, so that pip looks for no newer one; a CPU build at hand is preferred.
$(VENV)/.stamp-run: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/.stamp-build
	@$(PIP) --no-build-isolation -e '.[data]'
	touch $@

$(VENV)/.stamp-test: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/.stamp-build
	@$(PIP) --no-build-isolation $(STRICT) -e '.[data,test,dev,bench]'
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-build: constraints.txt | $(VENV)/.stamp-python
	@$(PIP) $(BUILD_TOOLS)
	touch $@

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
