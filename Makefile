# The two commands for a newcomer: `make demo` and `make test`. Both make .venv first, from Python 3.11 to 3.13.

SHELL := /bin/sh
IN_RANGE := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(IN_RANGE)' 2>/dev/null && { echo "$$python"; break; }; done)
# More packages to test with, where wanted, backends among them: make test EXTRAS="jax torch mlflow"
EXTRAS ?=
# As for `make test PYTEST_FLAGS="-k resume"`.
PYTEST_FLAGS ?=
BIN := .venv/bin
RUN := demo
DEMO_DATA := data/hipmri-phantom

export TF_CPP_MIN_LOG_LEVEL := 3

.PHONY: demo test bench lint clean

demo: .venv/installed
	rm -rf runs/$(RUN)
	$(BIN)/python train.py --dataset hipmri --demo --name $(RUN)
	$(BIN)/python predict.py $(DEMO_DATA)/keras_slices_test --labels $(DEMO_DATA)/keras_slices_seg_test --model runs/$(RUN)
	@echo
	@echo "Pictures of the training: runs/$(RUN)/figures/   of the predictions: predictions/*_overlay.png"

test: .venv/installed
	$(if $(strip $(EXTRAS)),$(BIN)/pip install --quiet $(EXTRAS))
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# Beside the peers of benchmarks/requirements.txt, which are some gigabytes: make bench BENCH_FLAGS="--rows prediction"
BENCH_FLAGS ?=
bench: .venv/installed
	$(BIN)/pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/cpu.py $(BENCH_FLAGS)

lint: .venv/installed
	$(BIN)/pip install --quiet "ruff==0.17.*"
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Leaves runs/ and predictions/ alone: they cannot be made again in minutes.
clean:
	rm -rf .venv cache data/*-phantom* .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Where an NVIDIA driver answers, TensorFlow gets the CUDA libraries that it was built for.
.venv/installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "make: Expected Python 3.11 to 3.13 with venv. Received: none. Install one or set PYTHON=." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@if nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install --quiet "tensorflow[and-cuda]"; fi
	touch $@
