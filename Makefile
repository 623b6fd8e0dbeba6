# `make demo` and `make test` set up everything they need in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check stress gpu test-timm1 clean

demo: $(READY)
	$(BIN)/ns-easyrobust demo

test: $(READY) check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not stress and not gpu"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

stress: $(READY)
	$(BIN)/python -m pytest -m stress

gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# All under timm 1.x but EasyRobust's scripts, which need timm 0.5.4; easyrobust pins older packages, so it comes without
# its dependencies, and so does torchattacks.
test-timm1: .venv-timm1/ready
	.venv-timm1/bin/python -m pytest -n 2 --dist worksteal -m "not stress and not gpu"

.venv-timm1/ready: setup.cfg constraints-timm1.txt
	$(PYTHON) -m venv .venv-timm1
	.venv-timm1/bin/python -m pip install --quiet --upgrade pip
	.venv-timm1/bin/python -m pip install --requirement constraints-timm1.txt
	.venv-timm1/bin/python -m pip install --no-deps easyrobust==0.2.4 torchattacks==3.5.1
	.venv-timm1/bin/python -m pip install --no-deps --editable .
	touch $@

$(READY): setup.cfg setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[easyrobust,demo,test]"
	touch $@

clean:
	rm -rf .venv .venv-timm1 .mypy_cache .pytest_cache .ruff_cache build *.egg-info
