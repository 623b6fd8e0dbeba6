"""What the tests share: digits as tensors and folders, small models, one of them trained."""

from __future__ import annotations

import importlib.util
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from ns_easyrobust import cli
from ns_easyrobust.models import build
from ns_easyrobust.vit import NormalizedModel, with_normalization

torch.set_num_threads(1)  # two test processes share two cores


def small_vit(num_classes: int = 10, seed: int = 0, arch: str = "vit_micro_patch8_32", **options) -> NormalizedModel:
    torch.manual_seed(seed)
    return with_normalization(build(arch, num_classes=num_classes, **options), (0.5,) * 3, (0.5,) * 3)


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that the first test process makes and the others wait for."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
    ready, path = root / f"{name}.ready", root / name
    try:
        os.close(os.open(root / f"{name}.lock", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert time.monotonic() < deadline, f"another test process did not make {name}"
            time.sleep(0.1)
        return path
    make(path)
    ready.touch()
    return path


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1797 digits, (n, 3, 32, 32) in [0, 1], in a random order, and their labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(loaded.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    images = nn.functional.interpolate(images, size=32, mode="bilinear").clamp(0, 1)
    return images[order], torch.tensor(loaded.target)[order]


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ns_easyrobust.digits import write_digits

    return once(tmp_path_factory, "digits", write_digits)


@pytest.fixture(scope="session")
def _trained_weights(tmp_path_factory: pytest.TempPathFactory, digits) -> Path:
    images, labels = digits

    def make(path: Path) -> None:
        model = small_vit()
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(350):
            batch = torch.randint(1297, (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        torch.save(model.state_dict(), path)

    return once(tmp_path_factory, "trained.pt", make)


@pytest.fixture
def trained(_trained_weights: Path) -> NormalizedModel:
    """A fresh copy of a small ViT that reads digits (trained on the first 1297 of ``digits``)."""
    model = small_vit()
    model.load_state_dict(torch.load(_trained_weights, weights_only=True))
    return model.eval()


@pytest.fixture
def batches(digits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Twenty batches of 64 digits that ``trained`` was trained on, with labels."""
    images, labels = digits
    return [(images[i : i + 64], labels[i : i + 64]) for i in range(0, 1280, 64)]


def in_a_fork(command: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    """``ns-easyrobust command`` in a process of its own that need not import torch again; what it says in ``where``."""

    def child() -> None:
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = open(where / name, "w", buffering=1)  # noqa: SIM115
            os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
        logging.getLogger().handlers.clear()  # pytest's
        os._exit(cli.main(command))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(200)
    assert process.exitcode is not None, "it hangs"
    said = [(where / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(command, process.exitcode, *said)


def torchrun(processes: int, where: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """``torchrun -m ns_easyrobust words``."""
    launcher = ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m", "ns_easyrobust"]
    program = [sys.executable, "-m", *launcher, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(program, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=200)


def load_script(name: str) -> ModuleType:
    """A script of ``benchmarks/`` as a module."""
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, int, int]]]:
    """EasyRobust's whole layout, 20 classes in each corruption; (n, right, unmasked) of each folder by its plan."""
    script = load_script("make_benchmark_tree")
    root = once(tmp_path_factory, "tree", lambda path: script.write_tree(path, classes=20))
    planted = json.loads((root / "planted.json").read_text())
    return root, {folder: (count["n"], count["right"], count["unmasked"]) for folder, count in planted.items()}


@pytest.fixture(scope="session")
def reads_pixels() -> NormalizedModel:
    """A model of 1000 outputs that reads the class out of ``tree``'s pixels, planted errors included."""
    return with_normalization(load_script("make_benchmark_tree").ReadsPixels(), (0.0,) * 3, (1.0,) * 3)
