# The two commands for a newcomer: `make demo` and `make test`. Both make .venv first, from Python 3.11 to 3.13. `make image` needs none.

SHELL := /bin/sh
IN_RANGE := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(IN_RANGE)' 2>/dev/null && { echo "$$python"; break; }; done)
# More packages to test with, where wanted, backends among them: make test EXTRAS="jax torch mlflow"
EXTRAS ?=
# As for `make test PYTEST_FLAGS="-k resume"`.
PYTEST_FLAGS ?=
# Test processes: one a core, at most 8. `make test WORKERS=0` runs the tests in one process, for a debugger.
WORKERS ?= auto
BIN := .venv/bin
RUN := demo
DEMO_DATA := data/hipmri-phantom
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

export TF_CPP_MIN_LOG_LEVEL := 3

.PHONY: demo test coverage bench lint lock image clean

demo: .venv/installed
	rm -rf runs/$(RUN)
	$(BIN)/python train.py --dataset hipmri --demo --name $(RUN)
	$(BIN)/python predict.py $(DEMO_DATA)/keras_slices_test --labels $(DEMO_DATA)/keras_slices_seg_test --model runs/$(RUN)
	@echo
	@echo "Pictures of the training: runs/$(RUN)/figures/   of the predictions: predictions/*_overlay.png"

test: .venv/installed-dev
	$(if $(strip $(EXTRAS)),$(PIP) $(EXTRAS))
	$(PYTEST) $(PYTEST_FLAGS)

# The tests with a table of the lines and branches that they reach.
coverage: .venv/installed-dev
	$(PYTEST) --cov --cov-report term-missing $(PYTEST_FLAGS)

# Beside the peers of benchmarks/requirements.txt, which are some gigabytes: make bench BENCH_FLAGS="--rows prediction"
BENCH_FLAGS ?=
bench: .venv/installed
	$(PIP) -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/cpu.py $(BENCH_FLAGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

# Refreshes both lock files: the newest versions that the two .txt files allow. They hold for Python 3.11 to 3.13 and each system.
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
lock: .venv/installed-dev
	$(COMPILE) requirements.txt --output-file requirements.lock
	$(COMPILE) requirements-dev.txt --constraint requirements.lock --output-file requirements-dev.lock

# A container that predicts, see docs/predicting.md. `make image MODEL=runs/NAME` puts the model of a finished run into it.
IMAGE ?= mri-segmentation
MODEL ?=
BUILDERS ?= docker podman
image:
	@for builder in $(BUILDERS); do "$$builder" info >/dev/null 2>&1 && break; builder=; done; \
	test -n "$$builder" || { echo "make: Expected docker or podman, ready to build. Received: neither." \
		"Install and start one: https://docs.docker.com/engine/install or https://podman.io/docs/installation" >&2; exit 2; }; \
	test -z "$(MODEL)" || test -f "$(MODEL)/bundle/bundle.json" || { \
		echo "make: Expected MODEL=runs/NAME, a finished run. Received: $(MODEL), without a model. Train one." >&2; exit 2; }; \
	set -x; "$$builder" build --tag "$(IMAGE)" $(if $(MODEL),--target with-model --build-arg "MODEL=$(MODEL)") .

# Leaves runs/ and predictions/ alone: they cannot be made again in minutes.
clean:
	rm -rf .venv cache data/*-phantom* .pytest_cache .ruff_cache .coverage .coverage.* htmlcov build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# If an NVIDIA driver answers, the locked TensorFlow gets the CUDA libraries that it was built for, and JAX trains with them: it is faster there.
.venv/installed: requirements.lock
	@"$(PYTHON)" -c '$(IN_RANGE)' 2>/dev/null || { \
		echo "make: Expected Python 3.11 to 3.13 with venv. Received: $(or $(PYTHON),none). Install one or set PYTHON=." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.lock
	@if nvidia-smi >/dev/null 2>&1; then \
		$(PIP) "tensorflow[and-cuda]==$$(sed -n 's/^tensorflow==\([^ ;]*\).*/\1/p' requirements.lock)" "jax[cuda12]>=0.10,<0.12"; fi
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	touch $@
