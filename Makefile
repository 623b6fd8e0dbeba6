# `make demo` and `make test` set up everything they need in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
CORE := tests/models tests/nullspace tests/training/test_augmentations.py tests/data/test_sampling.py tests/data/test_batches.py \
	tests/attacks/test_patch_fool.py tests/cli/test_export.py

.PHONY: demo test check stress test-timm1 clean

demo: $(READY)
	$(BIN)/ns-easyrobust demo

test: $(READY) check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not stress"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

stress: $(READY)
	$(BIN)/python -m pytest -m stress

# The core under timm 1.x; easyrobust and torchattacks pin older packages, so they come without their dependencies.
test-timm1: .venv-timm1/ready
	.venv-timm1/bin/python -m pytest -n 2 --dist worksteal -m "not stress" $(CORE)

.venv-timm1/ready: setup.cfg constraints-timm1.txt
	$(PYTHON) -m venv .venv-timm1
	.venv-timm1/bin/python -m pip install --quiet --upgrade pip
	.venv-timm1/bin/python -m pip install --requirement constraints-timm1.txt
	.venv-timm1/bin/python -m pip install --no-deps easyrobust==0.2.4 torchattacks==3.5.1 imagecorruptions==1.1.2
	.venv-timm1/bin/python -m pip install --no-deps --editable .
	touch $@

$(READY): setup.cfg setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[demo,test]"
	# without opencv-python, for which it asks and which would lie over opencv-python-headless
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps imagecorruptions
	touch $@

clean:
	rm -rf .venv .venv-timm1 .mypy_cache .pytest_cache .ruff_cache build *.egg-info
