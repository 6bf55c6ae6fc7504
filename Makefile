# Both commands set up their own virtual environment in .venv and are safe to run twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test slow lint environment clean

test: environment lint  ## lint, types, import direction, tests
	$(BIN)/python -m pytest -m "not slow and not gpu"

slow: environment  ## the tests that take longer
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

environment: $(VENV)/.installed

# torch first and alone: its plain release number takes a CPU build where one is offered.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
