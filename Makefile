# Every target makes its environment, .venv, when that is missing or out of date.

PYTHON ?= python3
JOBS ?= 2
SEED ?= 0
VERSIONS ?= latest
REFERENCE ?=
REFERENCE_PYTHON ?=
KEEP_REFERENCE ?=
ONLY ?=
MINUTES ?= 480
STILLS ?=
VIDEOS ?=
SYSTEM ?= keep
RUNS ?= runs/demo_weights_$(SYSTEM)
VARIANT ?=
PRESET ?= full
CPU ?=

BIN := .venv/bin
STAMP := .venv/installed
# Each process takes the next file as soon as it is free, the longest first (tests/conftest.py).
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo demo-weights test test-full fuzz lint docs bench bench-gpu

help:
	@echo "make demo                 restore the packaged clips with the packaged weights: demo_output/"
	@echo "make demo-weights SYSTEM=fmanet VIDEOS=DIR"
	@echo "make demo-weights SYSTEM=keep STILLS=DIR VIDEOS=DIR"
	@echo "                          train demonstration weights for MINUTES=$(MINUTES): $(RUNS)/weights"
	@echo "                          (of KEEP: VARIANT=no_kfn afterwards, to compare)"
	@echo "make test                 all tests but the slow ones (JOBS=$(JOBS) processes)"
	@echo "make test-full            all tests, programs compiled as users compile them"
	@echo "make fuzz                 damaged files, killed runs and runs beside each other (SEED=$(SEED))"
	@echo "make lint                 rules, format and types"
	@echo "make docs                 the documentation as a site: site/index.html"
	@echo "make bench REFERENCE=DIR  time and memory a frame; against the released PyTorch code in DIR, if given"
	@echo "                          (KEEP_REFERENCE=DIR: KEEP's; REFERENCE_PYTHON=PATH: one that has PyTorch;"
	@echo "                          ONLY=keep-training: one part)"
	@echo "make bench-gpu            both systems on a GPU, in at most 8 minutes; takes the same variables, and"
	@echo "                          PRESET=small CPU=1 tries it out without one"
	@echo "VERSIONS=lowest makes .venv with the lowest versions that requirements.txt allows"
	@echo "PYTHON=python3.12 chooses the interpreter of .venv (3.11 to 3.13; here: $(PYTHON))"

demo: $(STAMP)
	$(BIN)/python -m fmanet_jax.demo --out demo_output/fmanet
	$(BIN)/python -m keep_jax.demo --out demo_output/keep

demo-weights: $(STAMP)
	$(BIN)/python -m $(SYSTEM)_jax.demo_weights "$(RUNS)" --minutes $(MINUTES) \
	  $(if $(VARIANT),--variant "$(VARIANT)") \
	  $(if $(STILLS),--stills "$(STILLS)") $(if $(VIDEOS),--videos "$(VIDEOS)")

test: $(STAMP)
	$(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-full: $(STAMP)
	XLA_FLAGS="$(XLA_FLAGS)" $(BIN)/python -m pytest $(SPREAD)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --jobs $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(if $(REFERENCE),--reference "$(REFERENCE)") \
	  $(if $(KEEP_REFERENCE),--keep-reference "$(KEEP_REFERENCE)") $(if $(ONLY),--only "$(ONLY)") \
	  $(if $(REFERENCE_PYTHON),--reference-python "$(REFERENCE_PYTHON)")

bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu --preset $(PRESET) $(if $(CPU),--cpu) $(if $(ONLY),--only "$(ONLY)") \
	  $(if $(REFERENCE),--reference "$(REFERENCE)") \
	  $(if $(KEEP_REFERENCE),--keep-reference "$(KEEP_REFERENCE)") \
	  $(if $(REFERENCE_PYTHON),--reference-python "$(REFERENCE_PYTHON)")

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or not Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "making .venv with $$($(PYTHON) --version); this takes a few minutes"
	@$(PYTHON) -m venv --clear .venv
	@sed -n 's/^\([a-z-]*\)>=\([0-9.]*\).*/\1==\2.*/p' requirements.txt > .venv/lowest.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[test,lint,build,plot]' \
	  $(if $(filter lowest,$(VERSIONS)),--constraint .venv/lowest.txt)
	@touch $@
