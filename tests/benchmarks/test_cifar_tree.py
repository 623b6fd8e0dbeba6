from __future__ import annotations

import numpy as np
import pytest
from helpers.processes import load_script
from PIL import Image

from ns_easyrobust.data import known_corruptions


def test_a_tree_to_evaluate_on_from_two_folders(tmp_path):
    """Grey images, on which each corruption's strength can be read off."""
    grey = Image.new("RGB", (32, 32), (100, 128, 150))
    for split, name in (("train", "cat"), ("val", "cat"), ("val", "dog")):
        folder = tmp_path / "cifar" / split / name
        folder.mkdir(parents=True)
        for number in range(3):
            grey.save(folder / f"{number}.png")
    script = load_script("cifar_tree")
    root = script.write_tree(tmp_path / "cifar", tmp_path / "tree", per_class=2)
    assert sorted(path.name for path in (root / "imagenet-val").iterdir()) == ["cat", "dog"]
    assert sorted(path.name for path in (root / "train").iterdir()) == ["cat"]
    written = sorted(path.relative_to(root / "imagenet-c") for path in (root / "imagenet-c").rglob("*.png"))
    assert len(written) == len(script.STRENGTHS) * 2 * 2

    def pixels(name):
        images = [np.asarray(Image.open(path)) / 255 for path in (root / "imagenet-c" / name / "5").rglob("*.png")]
        return np.stack(images) - np.asarray(grey) / 255

    assert pixels("gaussian_noise").std() == pytest.approx(0.1, rel=0.03)
    assert (np.abs(pixels("impulse_noise")) > 0.2).mean() == pytest.approx(0.07, rel=0.1)
    assert np.abs(pixels("contrast")).max() < 2 / 255  # of one colour: nothing to lose, channel by channel
    assert np.abs(pixels("pixelate")).max() == 0


def test_contrast_and_pixelate_change_what_is_there():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = image.astype(float)
    flat = known_corruptions()["contrast"](image, np.random.default_rng(0), 0.15).astype(float)
    assert flat.std(axis=(0, 1)) == pytest.approx(0.15 * before.std(axis=(0, 1)), rel=0.05)
    coarse = known_corruptions()["pixelate"](image, np.random.default_rng(0), 0.5).astype(float)
    assert np.array_equal(coarse[::2, ::2], coarse[1::2, 1::2])
    assert coarse[:2, :2].mean((0, 1)) == pytest.approx(before[:2, :2].mean((0, 1)), abs=1)
    assert known_corruptions()["jpeg_compression"](image, np.random.default_rng(0), 40).shape == (32, 32, 3)
