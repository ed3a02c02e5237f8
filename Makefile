# SPDX-License-Identifier: Apache-2.0
# Every target installs what it needs, at the tested versions, into .venv and nowhere else.
# Paths are relative, so the project may lie in a folder with spaces in its name.

PYTHON ?= python3
PYTEST_ARGS ?=
# Each worker imports torch; more than four gain little and cost memory.
WORKERS ?= logical

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test quality bench space clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## name the emotions in the demo clips
	@$(BIN)/timnet predict timnet_hf/demo_clips
	@echo
	@echo "The demo voices are synthetic and feel nothing; they show that it runs. With your own:"
	@echo
	@echo "    $(BIN)/timnet predict your.wav"

# Coverage by branch is held to the share that pyproject.toml asks for. A part of the tests covers
# less: `make test COVERAGE= PYTEST_ARGS=tests/test_audio.py`.
COVERAGE ?= --cov --cov-report=term-missing:skip-covered

test: quality ## check the code, then run all tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		-n $(WORKERS) --maxprocesses=4 --dist=loadfile $(COVERAGE) $(PYTEST_ARGS)

quality: $(VENV)/.installed-dev ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed-bench ## measure speed against librosa, Keras and wav2vec 2.0
	$(BIN)/python scripts/benchmark.py
	$(BIN)/python scripts/update_tables.py

space: $(VENV)/.installed-demo ## open the demo page on this machine
	$(BIN)/timnet space

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .coverage htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find timnet_hf tests scripts spaces -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A half-made environment is removed, or the next run would take it for a whole one.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): some minutes and gigabytes the first time ..."
	@$(PIP_INSTALL) -e .
	@touch $@

# .installed-dev is the project with its extra `dev`, and so on.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with the extra $*: some minutes and gigabytes the first time ..."
	@$(PIP_INSTALL) -e ".[$*]"
	@touch $@
