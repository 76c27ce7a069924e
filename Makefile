# The two commands of the README. Both create .venv where it is missing and reuse it where it is not.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= results/bench
# Processes of the test suite.
JOBS ?= auto
# Images a corruption: 2,000 take about a minute on two quiet cores, all 10,000 about five.
IMAGES ?= 2000

.PHONY: bench test slow lint parity corruptions fuzz chaos clean

bench: $(VENV)/.bench-installed
	$(BIN)/tta-bench run --method source,norm,tent,deyo --stream fashion-mnist-c \
		--num-examples $(IMAGES) --out $(OUT) --resume
	$(BIN)/tta-bench leaderboard $(OUT) --export $(OUT)/leaderboard.csv --export $(OUT)/leaderboard.md

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=40

# The part of the suite that `make test` leaves out: long traces, engines of sweeps, a browser, …
slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

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

# Tables against the original implementations; SHARED holds data/ and traces/.
SHARED ?= $(TTA_SHARED)
TRACE_WEIGHTS = $(SHARED)/data/weights/resnet20-12fca82f.th

parity: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/parity/all_traces.py $(SHARED)/traces \
		--data $(SHARED)/data --weights $(TRACE_WEIGHTS)

# Agreement of the corruptions with the original generator, then their speed. The packages that are
# timed beside ours are those of the environment SPEED_PYTHON (see docs/corruptions.md).
SPEED_PYTHON ?= $(BIN)/python
corruptions: $(VENV)/.test-installed
	$(BIN)/python tests/parity/corruption_agreement.py --data $(SHARED)/data/cifar10c \
		--weights $(SHARED)/data/weights/resnet32-d509ac18.th \
		--imagenet $(SHARED)/data/imagenetc_reference --photographs $(SHARED)/data/imagenet/val \
		; agreement=$$?; PYTHONPATH=. $(SPEED_PYTHON) -m benchmarks.corruption_speed && exit $$agreement

# See docs/hardening.md; each goes on after a finding and says so at the end.
SECONDS ?= 600
FUZZ_SEED ?= 0
KILLS ?= 200
fuzz: $(VENV)/.test-installed
	status=0; for target in text arrays archives checkpoints folder; do \
		OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz/run.py $$target \
			--seconds $(SECONDS) --seed $(FUZZ_SEED) || status=1; done; exit $$status

chaos: $(VENV)/.test-installed
	PYTHONPATH=. $(BIN)/python tests/chaos/kills.py --kills $(KILLS)

clean:
	rm -rf build dist results .pytest_cache .mypy_cache .ruff_cache
