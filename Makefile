# make demo   set up, and run the whole path on synthetic data (report in demo/report.html)
# make test   set up with the test extras, and run the tests
# make check  set up with the developers' extras: lint, format, types, import rules
# make slow   the tests that take minutes
# make docs   set up with the extra docs, and build the documentation: site/index.html
# make coverage  the quick tests, and which lines of the source they run
# make wheel  dist/ulna-...whl with the C++ kernels compiled for kinds of processors (Linux, x86-64)
# make container  the steps of container/Dockerfile in a fresh environment: install, serve, compare a mask
# make processors  all tests under settings that imitate other processors; PROCESSORS=--slow: the slow ones too

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test slow docs coverage wheel container processors check format clean

demo: .venv/.core
	$(BIN)/ulna demo --out demo

test: .venv/.test
	$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

slow: .venv/.test
	$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder -m slow --timeout 1800

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

coverage: .venv/.test
	$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder --cov --cov-report=term:skip-covered

wheel: .venv/.core
	rm -rf build
	ULNA_WHEEL=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

container:
	PYTHON=$(PYTHON) sh container/try.sh

processors: .venv/.test
	$(BIN)/python tests/processors.py $(PROCESSORS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ulna needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv

# torch first: then nothing that follows can ask for another build of it
.venv/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	@touch $@

.venv/.test: .venv/.core
	$(PIP) --editable '.[test]'
	$(PIP) --editable ./packages/runtime
	@touch $@

.venv/.docs: .venv/.core
	$(PIP) --editable '.[docs]'
	@touch $@

.venv/.dev: .venv/.test
	$(PIP) --editable '.[dev]'
	@touch $@
