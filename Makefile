# The two commands of the README, and what developers use. Each makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2

.PHONY: demo test test-all quick lint package docs compat tpu gpu format clean help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## Train the demo: 2 minutes on 2 cores
	@JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/jaxopt-large train configs/stdlib_gpt.yaml --overwrite

test: $(VENV)/.test ## All tests that CI runs
	$(BIN)/python -m pytest -n $(WORKERS) -m "not full and not packaging"

test-all: $(VENV)/.test ## Full products of the contracts too
	$(BIN)/python -m pytest -n $(WORKERS) -m "not packaging"

quick: $(VENV)/.test ## The fast part of test: no training, no processes, no notebooks
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not full and not packaging"

lint: $(VENV)/.dev ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Bring the code into format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

package: $(VENV)/.test ## Wheel and sdist, checked; the wheel in a bare environment
	$(BIN)/python -m pytest -m packaging tests/test_packaging.py

docs: $(VENV)/.test ## docs/RULES.md, from what the rules say of themselves
	$(BIN)/python docs/make_rules.py > docs/RULES.md

compat: ## The marked tests on the oldest and the newest JAX
	tests/compat.sh

tpu: .venv-tpu/.done ## The TPU compiler's own account, for chips that are not there
	.venv-tpu/bin/python -m pytest -m tpu_compile tests/tpu

gpu: .venv-gpu/.done ## The GPU compiler's own account, for chips that are not there
	.venv-gpu/bin/python -m pytest -m gpu_compile tests/gpu

clean: ## Remove environments and caches; runs stay
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis .import_linter_cache .jax_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; give one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "On Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing jaxopt_large[train,viz] into $(VENV) ..."
	@$(PIP) -e '.[train,viz]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	@echo "Installing jaxopt_large[test] into $(VENV) ..."
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing jaxopt_large[dev] into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.demo

.venv-tpu/.done: pyproject.toml
	@echo "Installing jaxopt_large[compat,train,tpu-compile] into .venv-tpu ..."
	@$(PYTHON) -m venv .venv-tpu
	@.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[compat,train,tpu-compile]'
	@touch $@

.venv-gpu/.done: pyproject.toml
	@echo "Installing jaxopt_large[compat,gpu-compile] into .venv-gpu ..."
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[compat,gpu-compile]'
	@touch $@
