# Every target needs only Python 3.10+ and make; `make venv` fetches the rest into .venv once.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# The stamp carries a checksum of pyproject.toml: pip runs again only when that file says something new.
STAMP := $(VENV)/.installed-$(shell cksum < pyproject.toml | tr ' ' '-')
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint check docs zoo stress bench

help:  ## show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

venv: $(STAMP)  ## create .venv with everything the targets below need

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit("stripefold needs Python 3.10 or newer: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)  ## train, fold, verify and time ResNet-20 + ASR(SE) on the digits (about three minutes)
	$(BIN)/stripefold demo

test: $(STAMP)  ## all tests but the full zoo and the stress tests
	$(PYTEST) -n $(WORKERS) -m "not zoo and not stress"

lint: $(STAMP)  ## ruff, format, mypy, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q --doctest-modules src/stripefold src/stripefold_lab

check: lint  ## lint and the fast tests: the pre-commit hook
	$(PYTEST) -q -n $(WORKERS) -m "not zoo and not slow and not stress"

docs:  ## build the site into site/, strictly; into a .venv-docs of its own
	@test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict

zoo: $(STAMP)  ## sweep over timm, torchvision and transformers (hours; resumable)
	$(BIN)/python -m tests.zoo.run
	$(BIN)/python -m tests.zoo.gates_sweep --jobs $(WORKERS)
	$(BIN)/python -m tests.zoo.bake_sweep --jobs $(WORKERS)
	$(BIN)/python -m tests.zoo.fuse_sweep --jobs $(WORKERS)
	$(BIN)/python -m tests.grammar.run --count 2000 --jobs $(WORKERS) --write

stress: $(STAMP)  ## a hundred kills, thousands of damaged files (an hour; STRIPEFOLD_FUZZ=files of each kind)
	$(PYTEST) -q -m stress --ignore=tests/fuzz
	$(PYTEST) -q -rP -n $(WORKERS) -m stress tests/fuzz

bench: $(STAMP)  ## measure every claim and write benchmarks/RESULTS.md (run it on a quiet machine)
	$(BIN)/python -m benchmarks
