# Both commands set up their own virtual environment in .venv and are safe to run twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint environment clean

demo: environment  ## composed retrieval on emoji: a table, and demo/index.html
	$(BIN)/python examples/emoji/demo.py

test: environment lint  ## lint, types, import direction, tests
	$(BIN)/python -m pytest -m "not gpu"

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
