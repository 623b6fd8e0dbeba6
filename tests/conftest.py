"""What the tests share: digits as tensors and folders, small models, one of them trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from helpers.models import small_vit
from helpers.processes import load_script, once
from torch import nn

from ns_easyrobust.models.normalization import NormalizedModel, with_normalization

torch.set_num_threads(1)  # two test processes share two cores
TIMM_1 = not timm.__version__.startswith("0.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs EasyRobust's scripts as a host where they cannot run."""
    for item in items:
        if TIMM_1 and item.get_closest_marker("host"):
            item.add_marker(pytest.mark.skip(reason="EasyRobust's scripts need timm 0.5.4"))


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those of ``make gpu``: the others fork, and compare bits with the CPU's."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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
    from ns_easyrobust.data.demo_data import write_digits

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


@pytest.fixture
def own(tmp_path):
    """A tree of one's own to damage: of the folders named."""
    script = load_script("make_benchmark_tree")

    def make(*folders: str, **options) -> Path:
        script.write_tree(tmp_path / "data", folders=folders, **options)
        return tmp_path / "data"

    return make
