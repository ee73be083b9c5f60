# Everything happens in .venv; the first target that needs it makes it. Needs Python 3.10 to 3.12 and make.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && { echo $$p; break; }; \
	done)
IMAGE ?= tests/data/digits/3/0023.png

.PHONY: demo test lint bench kill-test kill-train mutants fuzz-kernel wheel-test clean

demo: $(READY)
	$(BIN)/neonext-export --checkpoint tests/data/digits_64.pt --shifts 1,1,0,0 --image-size 64 --target onnx,mindir --output build/digits
	$(BIN)/neonext-predict --model build/digits/digits_64.onnx $(IMAGE)

test: $(READY)
	$(BIN)/python -m pytest

# Not part of `make test`: builds a wheel, installs it in a fresh environment, runs the commands from another folder.
wheel-test: $(TOOLS)
	$(BIN)/python tests/wheel_check.py

# Not part of `make test`: SIGKILL at 50 random moments of an export.
kill-test: $(READY)
	$(BIN)/python tests/kill_export.py

# Not part of `make test`: training killed at random steps and resumed, one process and two.
kill-train: $(READY)
	$(BIN)/python tests/kill_train.py
	$(BIN)/python tests/kill_train.py --workers 2

# Not part of `make test`: wrong versions of the AscendC kernels, each of which has to be caught.
mutants: $(READY)
	$(BIN)/python tests/mutate_kernel.py

# Not part of `make test`: random NeoCells on the kernels in the twin, for MINUTES.
MINUTES ?= 5
fuzz-kernel: $(READY)
	$(BIN)/python tests/fuzz_kernel.py $(MINUTES)

# Ratios on this machine; not part of `make test`.
bench: $(READY)
	$(BIN)/neonext-bench --models neonext_t.released_224,convnext_t --naive --batch 1,8
	$(BIN)/python -m neonext_ms.benchmarks.export_cost
	$(BIN)/python -m neonext_ms.benchmarks.export_sizes
	$(BIN)/python -m neonext_ms.benchmarks.train_step
	$(BIN)/python -m neonext_ms.benchmarks.latency.block_model --models t --image-size 224
	$(BIN)/python -m neonext_ms.benchmarks.cost_watch

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or run: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
