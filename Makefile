# Everything a fresh machine needs beside this file: make, and Python 3.11, 3.12 or 3.13.
# `make help` lists the targets. uv is taken from PATH, or brought into .uv/ at the version below.

UV_VERSION := 0.13.8
ARGS ?=
KILLS ?= 200
SEED ?= 1
SHELL := /bin/bash

# Ray workers must use .venv as it is, not set up one of their own.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export UV_NO_PROGRESS := 1

# A shim that answers to no version is no uv.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
PYTHON = $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
  $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 && command -v $(p))))
SYNCED := .venv/.synced

.DEFAULT_GOAL := help
.PHONY: help demo test check lint unit fmt bench bench-store bench-embedder flow load soak chaos simulate twice manifests envtest

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(SYNCED) ## Watch sample scrapes become searchable (ARGS=--exit: end after the tour)
	@.venv/bin/shoal demo $(ARGS)

test: lint ## All checks and all tests: unit, contract, integration (ARGS=... goes to pytest)
	@$(if $(ARGS),.venv/bin/pytest $(ARGS),.venv/bin/python -m tests.lanes)

check: lint unit ## Format, lint, types, import rules and unit tests: the quick round

lint: $(SYNCED)
	@.venv/bin/ruff format --check --quiet --output-format concise . || { echo 'Not formatted: run `make fmt`.' >&2; exit 1; }
	@.venv/bin/ruff check --quiet --output-format concise .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

unit: $(SYNCED)
	@.venv/bin/pytest tests/unit $(ARGS)

simulate: $(SYNCED) ## Simulate the flow with faults (SEEDS=5000; ARGS="--seed N --trace" replays one)
	@.venv/bin/python -m tests.simulation --seeds $(or $(SEEDS),5000) --coverage $(ARGS)

bench: $(SYNCED) ## Measure the whole pipeline against its budgets (ARGS=--help says how)
	@.venv/bin/python -m bench.ingest $(ARGS)

bench-store: $(SYNCED) ## Measure tables and search core by themselves (ARGS=--quick: a minute; ARGS=--help)
	@LANCE_LOG=error .venv/bin/python -m bench.store $(ARGS)

bench-embedder: $(SYNCED) ## Measure the use of a provider's limits, waits and CPU (ARGS=--smoke: seconds; ARGS=--help)
	@.venv/bin/python -m bench.embedder $(ARGS)

flow: $(SYNCED) ## Simulate the flow at 1 to 1,000 times the load: where it saturates, what carries it (ARGS=--help)
	@.venv/bin/python -m bench.flow $(ARGS)

load: $(SYNCED) ## Ask 100,000 documents as 100 people and agents do while files come in (ARGS=--help)
	@LANCE_LOG=error .venv/bin/python -m loadtests.run $(ARGS)

soak: $(SYNCED) ## Commit 20,000 times with upkeep on and questions all along; then look it over (ARGS=--help)
	@LANCE_LOG=error .venv/bin/python -m bench.soak $(ARGS)

chaos: $(SYNCED) ## Kill it KILLS times (SEED=n) while it works; nothing may be lost or doubled (ARGS=--help)
	@.venv/bin/python -m tests.chaos --kills $(KILLS) --seed $(SEED) $(ARGS)

manifests: $(SYNCED) ## Check the Kubernetes manifests, Serve configs and Dockerfile as a cluster would (needs Go)
	@.venv/bin/pytest tests/unit/manifests $(ARGS)

envtest: $(SYNCED) ## Apply the manifests to a real API server and KubeRay operator (Go; not in `make test`: builds them first)
	@.venv/bin/pytest tests/envtest $(ARGS)

twice: $(SYNCED) ## Index all of the shared real data over and over, shuffled: the tables are those of once
	@SHOAL_TEST_SHARE=1 .venv/bin/pytest tests/integration/test_real_data_twice.py $(ARGS)

fmt: $(SYNCED) ## Format the code and mend what the linter can
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format .

$(SYNCED): pyproject.toml uv.lock $(filter .uv/%,$(UV))
	@echo 'Setting up .venv (the first time: about 1 GB of packages) ...'
	@$(UV) sync --frozen --quiet $(if $(PYTHON),--python $(PYTHON)) || { \
	  echo 'The environment could not be set up: see the lines above, then run make again.' >&2; exit 1; }
	@touch $@

# ensurepip is not there on a Debian without python3-venv; pip alone will do.
.uv/bin/uv:
	@test -n '$(PYTHON)' || { \
	  echo 'Python 3.11, 3.12 or 3.13 is needed and was not found on PATH: install one, or uv.' >&2; exit 1; }
	@echo 'Bringing uv $(UV_VERSION) into .uv/ ...'
	@rm -rf .uv && mkdir -p .uv/bin
	@if $(PYTHON) -m venv .uv/venv >/dev/null 2>&1; then \
	  .uv/venv/bin/pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)' && ln -s ../venv/bin/uv $@; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv/packages 'uv==$(UV_VERSION)' && \
	  ln -s ../packages/bin/uv $@; \
	else \
	  echo '$(PYTHON) has neither venv nor pip: install python3-venv (or uv), then run make again.' >&2; exit 1; \
	fi || { echo 'uv could not be installed: see the lines above, then run make again.' >&2; exit 1; }
	@$@ --version >/dev/null
