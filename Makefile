# Everything from a fresh clone: Python >= 3.11, make and a compiler are all it takes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest
# Ranks of one test fill the cores by themselves. The others are a process that waits about half of its time: three at a
# time; a file's stay together, for what they share.
RANKS := tests/equivalence tests/parallel
WORKERS ?= 3
OTHERS := -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(RANKS))

.PHONY: quickstart test slow cluster capabilities oldest check format lint types floors fix install install-dev clean

quickstart: $(VENV)/.core
	$(BIN)/python -m launch.quickstart

test: $(VENV)/.dev
	@failed=0; $(PYTEST) $(OTHERS) || failed=1; $(PYTEST) $(RANKS) || failed=1; exit $$failed

# Real SLURM, hosts with networks of their own, an sshd: needs root and Debian packages (tests/cluster).
cluster: $(VENV)/.dev
	$(PYTEST) -m cluster tests/cluster

slow: $(VENV)/.dev
	$(PYTEST) -m slow

# What older and other processors compute with, by the two libraries' own variables: ATen's kernels / oneDNN's.
# Sums run in another order there, and 16-bit products are emulated. `native` is what the processor has.
CAPABILITIES := avx2/AVX2 default/SSE41 native/AVX512_CORE
# Every test whose result is arithmetic: engines, layouts against one process, verify, the model's own layers.
ARITHMETIC := $(RANKS) tests/trainer/models/test_decoder.py tests/trainer/models/test_families.py \
	tests/trainer/models/test_head.py tests/trainer/objectives/test_objectives.py tests/trainer/optim/test_rounding.py

capabilities: $(VENV)/.dev
	@failed=; for capability in $(CAPABILITIES); do \
		aten="ATEN_CPU_CAPABILITY=$${capability%/*}"; onednn="ONEDNN_MAX_CPU_ISA=$${capability#*/}"; \
		[ "$${capability%/*}" != native ] || aten=; \
		echo "== $$aten $$onednn"; \
		env $$aten $$onednn $(PYTEST) $(ARITHMETIC) \
			|| failed="$$failed $$capability"; \
	done; \
	[ -z "$$failed" ] || { echo "failed under$$failed"; exit 1; }; \
	echo "passed under $(CAPABILITIES)"

# The same arithmetic at the lower end of torch's range; everything else runs at the upper. Not part of .ci/run: the public
# index has torch 2.11 for CUDA alone, 2.6 GB with what it needs. It computes on a CPU all the same.
OLDEST := .venv-oldest
oldest: $(OLDEST)/.made
	PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" $(OLDEST)/bin/python -m pytest $(ARITHMETIC)

$(OLDEST)/.made: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip --disable-pip-version-check install --quiet 'torch==2.11.0' -e '.[dev]'
	touch $@

check: format lint types floors

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

floors: $(VENV)/.dev
	$(BIN)/lint-imports

fix: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.core
install-dev: $(VENV)/.dev

$(VENV)/.core: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; say which to use: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is large: minutes)"
	$(PIP) 'torch>=2.11,<2.14'
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
