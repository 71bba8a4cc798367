# Every target sets up its own environment in .venv first; nothing needs to be activated.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m convbench
# Half as many again as cores: tests wait, for late writes, for processes that they killed, for a clock.
CORES := $(shell getconf _NPROCESSORS_ONLN)
WORKERS := $(shell expr $(CORES) + $(CORES) / 2)

.PHONY: help vgg smoke test check gpu clean
help:
	@echo "make vgg    set up, run suites/vgg.yaml, write the report (under 15 minutes on 2 cores)"
	@echo "make test   set up with the cross-checks, run every test (under 15 minutes)"
	@echo "make check  ruff, mypy, import-linter"
	@echo "make smoke  the smoke suite, under a minute"
	@echo "make gpu    on a machine with an NVIDIA GPU: correctness, ceilings, tiles, headline (under 9 minutes)"

# What the commands need.
$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mkl]'
	@touch $@

# What the tests need beside that: the checkers, and torch as a cross-check (pinned; give pip an index with
# CPU builds of it, or it brings several GB of CUDA).
$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mkl,torch,dev]'
	@touch $@

vgg: $(VENV)/.run
	$(RUN) run suites/vgg.yaml

smoke: $(VENV)/.run
	$(RUN) run smoke

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml

# What a GPU needs beside that: CuPy, cuDNN's front end, the compiler.
$(VENV)/.cuda: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mkl,cuda]'
	@touch $@

gpu: $(VENV)/.run
	@$(BIN)/python benchmarks/gpu.py --check
	@$(MAKE) --no-print-directory $(VENV)/.cuda
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
