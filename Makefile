# `make demo` and `make test` set up everything they need in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo gallery study-small evidence test check stress gpu test-timm1 clean

demo: $(READY)
	$(BIN)/ns-easyrobust demo

# The pages of docs/gallery, from their records.
gallery: $(READY)
	$(BIN)/python benchmarks/gallery.py

# The path of docs/evidence.md on digits: data, start, study, confirmation, feasible norms.
study-small: $(READY)
	$(BIN)/python benchmarks/study_small.py

# make evidence IMAGENETTE=folder START=start.safetensors, on a machine with a GPU.
evidence: $(READY)
	@test -n "$(IMAGENETTE)" -a -n "$(START)" || \
		{ echo "make evidence: expected IMAGENETTE=folder START=start.safetensors, found one missing" >&2; exit 2; }
	$(BIN)/python benchmarks/evidence.py "$(IMAGENETTE)" "$(START)"

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

.venv-timm1/ready: setup.cfg setup.py constraints-timm1.txt
	$(PYTHON) -m venv .venv-timm1
	.venv-timm1/bin/python -m pip install --quiet --upgrade pip
	.venv-timm1/bin/python -m pip install --constraint constraints-timm1.txt --editable ".[hfds,test]" "timm>=1" \
		einops ftfy opt_einsum PyWavelets regex requests "setuptools<81"
	.venv-timm1/bin/python -m pip install --no-deps --constraint constraints-timm1.txt easyrobust torchattacks \
		imagecorruptions grad-cam ttach
	touch $@

$(READY): setup.cfg setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[easyrobust,demo,test]"
	# without opencv-python, for which they ask and which would lie over opencv-python-headless
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps imagecorruptions grad-cam ttach
	touch $@

clean:
	rm -rf .venv .venv-timm1 .mypy_cache .pytest_cache .ruff_cache build *.egg-info
