# Galley's commands; CONTRIBUTING.md says more. Each is one line, and each sets up .venv first.
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   take torch from the CPU-only wheels: no CUDA, 2 GB less to load
PYTHON ?= python3
MODEL ?= models/galley-tiny
HOST ?= 127.0.0.1
PORT ?= 8080
ARGS ?=
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: setup serve test nightly lint bench bench-peers

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch && $(PIP) --editable '.[dev]' && touch $@

serve: setup
	@exec $(BIN)/python serve --model $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

nightly: setup
	$(BIN)/python -m pytest tests/property --hypothesis-profile=nightly --timeout=0 $(ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/python -m pytest tests/architecture

bench: setup
	$(BIN)/python benchmarks/offline.py --model $(MODEL) && $(BIN)/python benchmarks/serving.py --model $(MODEL)

bench-peers: setup
	$(BIN)/python benchmarks/cpu_peers.py $(ARGS)
