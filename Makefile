# make demo   installs her2net and runs it on a synthetic cohort
# make test   installs her2net with its test tools and runs the tests
# make check  style and types, without installing anything anew

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test test-all check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: $(BIN)/python setup.py her2net/version.py
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/her2net_demo --out her2net_demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check her2net tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not gpu"

check: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check her2net tests benchmarks
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info
