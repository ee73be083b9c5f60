# Everything happens in .venv; the first target that needs it creates it. Requires Python 3.10 to 3.12 and make.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && { echo $$p; break; }; \
	done)
IMAGE ?= tests/data/digits/3/0023.png
# Processes that run tests. Each file stays in one process, so that its fixtures are shared and its order is kept.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$(( n < 4 ? n : 4 )))
MINUTES ?= 5
TORCH ?= build/torch
OFFICIAL ?= $(TORCH)/neonext

.DEFAULT_GOAL := help
.PHONY: help demo demo-photo board-demo lite test lint docs-check bench torch-env kill-test kill-train disk-full mutants fuzz fuzz-kernel integers wheel-test clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: $(READY) ## install, export the digits checkpoint to ONNX and MindIR, classify IMAGE
	$(BIN)/neonext-export --checkpoint tests/data/digits_64.pt --shifts 1,1,0,0 --image-size 64 --target onnx,mindir --output build/digits
	$(BIN)/neonext-predict --model build/digits/digits_64.onnx $(IMAGE)

demo-photo: $(READY) ## classify PHOTO, any picture, with a network trained on CIFAR-10 (ten classes)
	@test -n "$(PHOTO)" || { echo "error: no picture. Name one: make demo-photo PHOTO=cat.jpg" >&2; exit 2; }
	$(BIN)/neonext-export --checkpoint tests/data/cifar10_64.safetensors --target onnx --output build/cifar10
	$(BIN)/neonext-predict --model build/cifar10/cifar10_64.onnx --top 3 "$(PHOTO)"

board-demo: $(READY) ## pack a kit, run it on stand-ins of a board, and print the report (no device is measured)
	$(BIN)/python tests/board_demo.py --output build/board-demo

lite: $(READY) ## download MindSpore Lite (169 MB) for the target lite and its runtime, or unpack WHEEL
	$(BIN)/python -m neonext_ms.lite $(if $(WHEEL),--wheel $(WHEEL))

test: $(READY) ## run all tests in JOBS processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(TOOLS) ## check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

docs-check: $(TOOLS) ## run the commands that README and docs show (several minutes)
	$(BIN)/python tests/docs_check.py

wheel-test: $(TOOLS) ## build a wheel, install it in a fresh environment, run the commands from another folder
	$(BIN)/python tests/wheel_check.py

integers: $(READY) ## compare the integers of both 8-bit forms of T at 224 pixels on 16 inputs
	$(BIN)/python -m tests.integers_t

kill-test: $(READY) ## kill an export at 50 random moments, or at MOMENTS
	$(BIN)/python tests/kill_export.py $(if $(MOMENTS),--times $(MOMENTS))

kill-train: $(READY) ## kill training runs at 40 random steps, or at MOMENTS, and resume them, with one process and with two
	$(BIN)/python tests/kill_train.py $(if $(MOMENTS),--times $(MOMENTS))
	$(BIN)/python tests/kill_train.py $(if $(MOMENTS),--times $(MOMENTS)) --workers 2

disk-full: $(READY) ## let the disk be full at 20 writes of each command, or at MOMENTS
	$(BIN)/python tests/disk_full.py $(if $(MOMENTS),--moments $(MOMENTS))

mutants: $(READY) ## check that wrong versions of the AscendC kernels are caught
	$(BIN)/python tests/mutate_kernel.py

fuzz: $(READY) ## read damaged files of every kind for MINUTES
	$(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

fuzz-kernel: $(READY) ## run random NeoCells in the simulator for MINUTES
	$(BIN)/python tests/fuzz_kernel.py $(MINUTES)

bench: $(READY) ## measure the ratios of README on this machine
	$(BIN)/neonext-bench --models neonext_t.released_224,convnext_t --naive --batch 1,8
	$(BIN)/python -m neonext_ms.benchmarks.export_cost
	$(BIN)/python -m neonext_ms.benchmarks.train_step
	$(BIN)/neonext-bench estimate blocks neocell --models t --image-size 224
	$(BIN)/python -m neonext_ms.benchmarks.cost_watch

# It finds what it lacks in .venv, so that neonext-bench runs in it too; nothing of it reaches .venv.
torch-env: $(READY) ## create an environment in TORCH with PyTorch and the official code, to measure them (downloads)
	@test ! -e $(TORCH) -o -f $(TORCH)/pyvenv.cfg || { echo "error: $(TORCH) is not an environment of this target. Name another folder: make torch-env TORCH=FOLDER" >&2; exit 1; }
	test -x $(TORCH)/bin/python || $(BIN)/python -m venv $(TORCH)
	for folder in $(TORCH)/lib/python*/site-packages; do \
		$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > $$folder/zz_neonext_ms.pth; \
	done
	$(TORCH)/bin/python -m pip install --quiet --index-url https://download.pytorch.org/whl/cpu torch
	$(TORCH)/bin/python -m pip install --quiet ninja onnxslim
	test -d $(OFFICIAL) || git clone --depth 1 https://github.com/HapKoM/neonext $(OFFICIAL)

clean: ## delete the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 was found. Install one, or run: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
