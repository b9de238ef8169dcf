# Every target makes its environment, .venv, when that is missing or out of date.

PYTHON ?= python3
JOBS ?= 2
SEED ?= 0
REFERENCE ?=
REFERENCE_PYTHON ?=
KEEP_REFERENCE ?=

BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help demo test test-full fuzz lint bench

help:
	@echo "make demo                 restore the packaged clip with the packaged weights: demo_output/"
	@echo "make test                 all tests but the slow ones (JOBS=$(JOBS) processes)"
	@echo "make test-full            all tests"
	@echo "make fuzz                 damaged files, killed runs and runs beside each other (SEED=$(SEED))"
	@echo "make lint                 rules, format and types"
	@echo "make bench REFERENCE=DIR  time and memory a frame; against the released PyTorch code in DIR, if given"
	@echo "                          (KEEP_REFERENCE=DIR: KEEP's; REFERENCE_PYTHON=PATH: one that has PyTorch)"
	@echo "PYTHON=python3.12 chooses the interpreter of .venv (3.11 to 3.13; here: $(PYTHON))"

demo: $(STAMP)
	$(BIN)/python -m fmanet_jax.demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-full: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --jobs $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(if $(REFERENCE),--reference "$(REFERENCE)") \
	  $(if $(KEEP_REFERENCE),--keep-reference "$(KEEP_REFERENCE)") \
	  $(if $(REFERENCE_PYTHON),--reference-python "$(REFERENCE_PYTHON)")

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or not Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "making .venv with $$($(PYTHON) --version); this takes a few minutes"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[test,lint,build,plot]'
	@touch $@
