"""A model and images by flags: which images, which weights, and what tells them apart."""

from __future__ import annotations

import pytest
import torch
from helpers.models import small_vit
from torchvision.utils import save_image

from ns_easyrobust.errors import DataError, ModelError, OptionError
from ns_easyrobust.experiments.image_set import open_image_set
from ns_easyrobust.experiments.inputs import add_input_arguments, open_inputs
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.digest import state_digest
from ns_easyrobust.utils import FlagParser


def opened(words: list[str], images: int = 12, synthesis_images: int | None = None):
    parser = FlagParser()
    add_input_arguments(parser, images, synthesis_images)
    return open_inputs(parser.parse_args([*words, "-j", "0", "--device", "cpu", "--crop-pct", "1"]))


@pytest.fixture
def words(trained, digits_dir, tmp_path):
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    return ["--ckpt-path", str(tmp_path / "last.pth.tar"), "--data-dir", str(digits_dir)]


def test_the_protocol_tells_weights_and_images_apart(words, trained):
    one, same = opened(words, synthesis_images=20), opened(words, synthesis_images=20)
    assert one.protocol == same.protocol
    assert torch.equal(one.measured.pixels, same.measured.pixels)
    assert one.protocol["weights"] == state_digest(trained)
    assert (len(one.measured), len(one.searched)) == (one.protocol["n"], one.protocol["synthesis_n"]) == (12, 20)
    pairs = (one.measured.pixels[:, None] - one.searched.pixels[None]).flatten(2).abs().sum(-1)
    assert float(pairs.min()) > 0  # none of them in both
    other = opened([*words, "--seed", "1"], synthesis_images=20)
    assert {name for name in one.protocol if one.protocol[name] != other.protocol[name]} == {
        "seed", "images", "synthesis_images", "pixels", "synthesis_pixels",
    }  # fmt: skip


def test_without_synthesis_all_images_may_be_measured(words, digits_dir, trained):
    found = opened(words)
    assert found.searched is found.measured
    assert "synthesis_n" not in found.protocol
    with torch.no_grad():
        assert not found.model.training
        assert torch.equal(found.model(found.measured.pixels), trained(found.measured.pixels))
    with pytest.raises(OptionError, match="--input-size 64: expected 32"):
        opened([*words, "--input-size", "64"])


def test_one_image_or_one_class_and_other_pixels_of_the_same_names(words, trained, tmp_path, digits):
    def folder(name, shift=0):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            save_image(digits[0][shift + ord(label)], tmp_path / name / label / "0.png")
        return [*words[:2], "--data-dir", str(tmp_path / name)]

    one, other = (opened(folder(name, shift)).protocol for name, shift in (("one", 0), ("other", 2)))
    assert {name for name in one if one[name] != other[name]} == {"pixels"}
    with pytest.raises(DataError, match="expected two images at least for --images, found 1 random"):
        opened([*words[:2], "--data-dir", str(tmp_path / "one")], synthesis_images=5)
    save_model(small_vit(1), tmp_path / "single.pth.tar", arch="vit_micro_patch8_32")
    with pytest.raises(ModelError, match=r"single\.pth\.tar: expected two classes or more, found one"):
        opened(["--ckpt-path", str(tmp_path / "single.pth.tar"), *words[2:]])


def test_val_is_measured_on_where_there_is_one(digits_dir):
    from ns_easyrobust.data import Preprocessing

    both = open_image_set(digits_dir, Preprocessing(32, 1), 5, 0, 0)
    alone = open_image_set(digits_dir / "val", Preprocessing(32, 1), 10**6, 0, 0)
    assert (len(both), both.origin) == (5, "5 random ones of val/")
    assert alone.origin == f"{len(alone)} random ones of the folder"


def test_a_model_can_be_enlarged(words, trained):
    parser = FlagParser()
    add_input_arguments(parser, 4, enlarge=True)
    args = parser.parse_args([*words, "--enlarge", "2", "-j", "0", "--device", "cpu", "--crop-pct", "1"])
    inputs = open_inputs(args)
    assert inputs.measured.pixels.shape == (4, 3, 64, 64)
    assert (inputs.protocol["enlarge"], inputs.protocol["image_size"]) == (2, 64)
    with torch.no_grad():
        pooled = trained(torch.nn.functional.avg_pool2d(inputs.measured.pixels, 2))
        assert torch.allclose(inputs.model(inputs.measured.pixels), pooled, atol=1e-4)
    assert args.input_size == 64
    assert open_inputs(args).protocol == inputs.protocol  # not enlarged twice
    assert args.input_size == 64
    assert "enlarge" not in opened(words, 4).protocol
