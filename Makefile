# Galley's commands; CONTRIBUTING.md says more. Each is one line, and each sets up .venv first.
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   take torch from the CPU-only wheels: no CUDA, 2 GB less to load
PYTHON ?= python3
MODEL ?= models/galley-tiny
HOST ?= 127.0.0.1
PORT ?= 8080
ARGS ?=
TORCH_INDEX ?=
GPU_PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: setup serve test test-triton-3.6 nightly contract-check lint bench bench-peers gpu-check gpu-wheels image-test

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch && $(PIP) --editable '.[dev]' && touch $@

serve: setup
	@exec $(BIN)/python serve --model $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

# The oldest Triton that a GPU image brings; its interpreter needs an older numpy.
test-triton-3.6: .venv-triton-3.6/.installed
	.venv-triton-3.6/bin/python -m pytest tests/kernels/gpu --confcutdir tests/kernels/gpu $(ARGS)

.venv-triton-3.6/.installed: constraints.txt
	$(PYTHON) -m venv .venv-triton-3.6
	.venv-triton-3.6/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	.venv-triton-3.6/bin/pip install --quiet 'numpy<2.4' pytest pytest-timeout
	.venv-triton-3.6/bin/pip install --quiet --no-deps triton==3.6.0 && touch $@

nightly: setup
	$(BIN)/python -m pytest tests/property --hypothesis-profile=nightly --timeout=0 $(ARGS)

# Takes each feature of docs/sagemaker.md away in a copy, and holds that the row's test then fails. Some ten minutes.
contract-check: setup
	$(BIN)/python -m tests.contract.check $(ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/python -m pytest tests/architecture

bench: setup
	$(BIN)/python benchmarks/offline.py --model $(MODEL) && $(BIN)/python benchmarks/serving.py --model $(MODEL)

# Needs no `make setup`: a machine with a GPU, torch 2.11, triton 3.6, transformers, safetensors, numpy and pytest.
# What the engine and `serve` need besides comes from build/gpu-wheels, where `make gpu-wheels` has put it.
gpu-check:
	$(GPU_PYTHON) benchmarks/gpu_check.py $(ARGS)

gpu-wheels:
	$(PYTHON) benchmarks/gpu_wheels.py $(ARGS)

# Needs root and the Debian packages buildah and debootstrap; no Docker daemon.
image-test: setup
	$(BIN)/python tests/image/build.py $(ARGS)

bench-peers: setup
	$(BIN)/python benchmarks/cpu_peers.py $(ARGS)
