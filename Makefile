# `make demo` and `make test` set everything up; `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-gpu bench-gpu test-lowest test-newest package worlds parity docs docs-serve
.PHONY: reference lint format tiny-model clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: .venv/installed ## Create .venv and install dagflow into it

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dagflow needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## Align the embedded model with a reward, in at most ten minutes
	$(BIN)/dagflow train tiny -s epochs=6 -s update.flow_warmup=20 -s evaluate.images=128

test: setup lint ## All tests except slow ones, types and style
	$(BIN)/pytest -n 2

test-all: setup lint ## Slow tests too
	$(BIN)/pytest -n 2 -m ''

test-gpu: setup ## The device tests (training, rewards, drawing), on a GPU
	CUBLAS_WORKSPACE_CONFIG=:4096:8 DAGFLOW_TEST_GPU=1 $(BIN)/pytest -n 2 -m '' tests/test_elsewhere.py

SD15 := --model sd15 --samples 8 --steps 10 --chunk 16

bench-gpu: setup ## The GPU benchmarks in SD v1.5's shapes; compiled ones come last
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "torch sees no GPU here.")'
	for each in limits vs_ddpo vs_literal; do \
	  $(BIN)/python benchmarks/$$each.py $(SD15) || exit 1; \
	done
	$(BIN)/python benchmarks/sd15_memory.py
	$(BIN)/python benchmarks/throughput.py $(SD15) --compiled

test-lowest: build/lowest/installed ## The tests, with the oldest versions that pyproject.toml allows
	build/lowest/bin/pytest -n 2

test-newest: build/newest/installed ## The tests, with the newest version of everything except torch
	build/newest/bin/pytest -n 2

build/lowest/constraints.txt: pyproject.toml tools/lowest.py | .venv/installed
	mkdir -p $(@D)
	$(BIN)/python tools/lowest.py >$@

build/newest/constraints.txt: constraints.txt
	mkdir -p $(@D)
	grep '^torch' $< >$@

build/%/installed: build/%/constraints.txt pyproject.toml
	$(PYTHON) -m venv build/$*
	build/$*/bin/pip install --quiet --disable-pip-version-check -c $< -e '.[dev]'
	touch $@

package: setup ## Build wheel and sdist, install the wheel in an empty environment and use it there
	rm -rf dist
	$(BIN)/python -m hatchling build
	PYTHON=$(PYTHON) tools/use_wheel dist/*.whl

OBJECTIVES := tb vargrad db kl subtb rtb residual-db ddpo grpo
TUNED := rtb:rewards.truth.name=world-ratio residual-db:rewards.truth.name=world-ratio \
	ddpo:update.learning_rate=1e-4 grpo:update.learning_rate=5e-4 grpo:objective.kl_coefficient=1.0

worlds: setup ## One seed of all objectives against known targets (SEEDS=5: the table of docs/objectives.md)
	for world in 1d 2d digits; do \
	  OMP_NUM_THREADS=1 $(BIN)/dagflow compare world-$$world --seeds $(or $(SEEDS),1) --jobs 2 \
	    $(addprefix --objective ,$(OBJECTIVES)) $(addprefix --tune ,$(TUNED)) \
	    --output build/worlds/$$world || exit 1; \
	done

ORIGINALS := plugins/dagflow-originals

build/originals/installed: $(ORIGINALS)/requirements.txt $(ORIGINALS)/requirements-pinned.txt
	$(PYTHON) -m venv build/originals
	build/originals/bin/pip install --quiet -c constraints.txt -r $(ORIGINALS)/requirements.txt
	build/originals/bin/pip install --quiet --no-deps -r $(ORIGINALS)/requirements-pinned.txt
	build/originals/bin/pip install --quiet --no-deps -e $(ORIGINALS) -e .
	touch $@

parity: setup build/originals/installed ## Compare the rewards with the genuine packages; FULL=1: at full size
	build/originals/bin/python -m tools.parity.originals build/parity $(if $(FULL),--full)
	$(BIN)/python -m tools.parity.compare build/parity $(if $(GOLDEN),--golden $(GOLDEN))

docs: reference ## Build the documentation site into build/site; warnings are errors
	$(BIN)/zensical build --clean --strict

docs-serve: setup ## Show the site at http://localhost:8000 while you write
	$(BIN)/zensical serve

reference: setup ## Regenerate the pages of commands, settings and metrics from the code
	$(BIN)/python -m tools.reference

lint: setup ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## Fix the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tiny-model: setup ## Retrain the embedded model (hours; needs Noto Color Emoji)
	$(BIN)/python tools/tiny_model/train.py

clean: ## Remove what make created, except runs
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
