# make demo   installs her2net and runs it on a synthetic cohort
# make test   installs her2net with its test tools and runs the tests
# make bench  runs every benchmark against its rivals and compares the ratios with those expected
# make check  style and types, without installing anything anew

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

BENCH ?= .venv-bench
ROWS = preprocess augment start_up training predict memory scale evaluate_speed

.PHONY: demo test test-all bench check clean

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
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu"

$(BENCH)/.installed: $(VENV)/.installed benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -c "import sysconfig; from pathlib import Path; base = Path('$(VENV)/lib').resolve(); \
	  Path(sysconfig.get_path('purelib'), 'her2net_base.pth').write_text(f'{next(base.glob(\"python*/site-packages\"))}\n{Path.cwd()}\n')"
	$(BENCH)/bin/pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	touch $@

bench: $(BENCH)/.installed
	for row in $(ROWS); do $(BENCH)/bin/python benchmarks/$$row.py || exit 1; done
	$(BENCH)/bin/python benchmarks/guard.py

check: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check her2net tests benchmarks
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) $(BENCH) build *.egg-info
