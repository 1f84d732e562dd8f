PYTHON ?= python3
# Pinned for development and CI; users may bring any torch >= 2.8 (pyproject.toml).
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: venv test check

venv: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q $(TORCH) -e '.[dev]'
	touch $@

test: venv check
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
