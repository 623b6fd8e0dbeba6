"""Every public name has an example in its docstring, and the examples give what they say."""

from __future__ import annotations

import contextlib
import copy
import doctest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import easyrobust.augmentations
import easyrobust.benchmarks
import pytest
import torch
from helpers.models import small_vit
from torch.utils.data import DataLoader, TensorDataset
from torchvision.utils import save_image

import ns_easyrobust
from ns_easyrobust.attacks.base import known_attacks
from ns_easyrobust.data.benchmarks import known_benchmarks
from ns_easyrobust.nullspace.solvers import known_solvers
from ns_easyrobust.training.augmentations import augmentations


@pytest.fixture(scope="module")
def two_digits(digits) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of 0 and 1 among ``digits``, and their labels."""
    images, labels = digits
    return images[labels < 2], labels[labels < 2]


@pytest.fixture(scope="module")
def data_dir(two_digits, tree, tmp_path_factory) -> Path:
    """EasyRobust's folders, and ``val``: 40 images in a flat folder with their labels."""
    root = tmp_path_factory.mktemp("data")
    for folder in tree[0].iterdir():
        (root / folder.name).symlink_to(folder)
    (root / "val").mkdir()
    lines = []
    for number, (image, label) in enumerate(zip(*(part[:40] for part in two_digits), strict=True)):
        save_image(image, root / "val" / f"{number}.png")
        lines.append(f"{number}.png {label}\n")
    (root / "val" / "val.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def prepared(two_digits, data_dir, reads_pixels) -> dict[str, Any]:
    """What the package's docstring promises to the examples."""
    images, labels = two_digits
    model = small_vit()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(40):
        batch = slice(32 * (step % 10), 32 * (step % 10 + 1))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return {
        **{name: getattr(ns_easyrobust, name) for name in ns_easyrobust.__all__},
        "torch": torch,
        "model": model.eval(),
        "imagenet_model": reads_pixels.eval(),
        "images": images[:8],
        "labels": labels[:8],
        "loader": DataLoader(TensorDataset(images[:40], labels[:40]), batch_size=8),
        "data_dir": data_dir,
    }


@pytest.fixture
def namespace(prepared, tmp_path, monkeypatch) -> Iterator[dict[str, Any]]:
    """The names that an example finds; what it writes, registers and trains is of no consequence to the next."""
    monkeypatch.chdir(tmp_path)
    registries = (known_attacks(), known_benchmarks(), known_solvers(), augmentations())
    hosts = (vars(easyrobust.augmentations), vars(easyrobust.benchmarks))
    with contextlib.ExitStack() as undone:
        for names in (*registries, *hosts):
            undone.enter_context(mock.patch.dict(names))
        yield {**prepared, "model": copy.deepcopy(prepared["model"])}


@pytest.mark.parametrize("name", ns_easyrobust.__all__)
def test_examples_give_what_they_say(name, namespace):
    found = doctest.DocTestFinder().find(getattr(ns_easyrobust, name), name, globs=namespace)
    if not any(test.examples for test in found):
        pytest.fail(f"{name} has no example in its docstring", pytrace=False)
    differences: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in found:
        runner.run(test, out=differences.append)
    if differences:
        pytest.fail("".join(differences), pytrace=False)
