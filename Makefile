# The two commands of the README. Both create .venv where it is missing and reuse it where it is not.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= results/bench
# Images a corruption: 2,000 take about a minute on two quiet cores, all 10,000 about five.
IMAGES ?= 2000

.PHONY: bench test lint clean

bench: $(VENV)/.bench-installed
	$(BIN)/tta-bench run --method source,norm,tent,deyo --stream fashion-mnist-c \
		--num-examples $(IMAGES) --out $(OUT) --resume
	$(BIN)/tta-bench leaderboard $(OUT) --export $(OUT)/leaderboard.csv --export $(OUT)/leaderboard.md

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest

lint: $(VENV)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.bench-installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.bench-installed

clean:
	rm -rf build dist results .pytest_cache .mypy_cache .ruff_cache
