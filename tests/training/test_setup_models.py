"""What a run says of a model of the user's own, or of a hub's: whose fault it is, and where its weights came from."""

from __future__ import annotations

import json
import sys

import pytest
import timm
import torch
import yaml
from helpers.models import small_vit
from safetensors.torch import save_file

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import ModelError
from ns_easyrobust.models import load_model, read_checkpoint, save_model
from ns_easyrobust.training import setup
from ns_easyrobust.training.options import parse_args

ARCH = "vit_micro_patch8_32"
CPU = torch.device("cpu")
FACTORIES = """
import timm
from torch import nn


def vit(num_classes):
    return timm.create_model("vit_micro_patch8_32", num_classes=num_classes)


def fixed():
    return vit(1000)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_classes = 10
        self.head = nn.Linear(3, 10)

    def forward(self, images):
        raise ValueError("not\\nthese")


def odd():
    return Odd()


class Forgetful(nn.Module):
    num_classes = 7

    def __init__(self, count):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 3, 8, 8)
        self.head = nn.Linear(3, count)

    def reset_classifier(self, count):
        self.head = nn.Linear(3, count)

    def forward(self, images):
        return self.head(self.patch_embed(images).mean((2, 3)))


def forgetful():
    return Forgetful(7)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with factories in mine.py."""
    (tmp_path / "mine.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def flags(digits_dir, *more):
    return parse_args(["--data-dir", str(digits_dir), "--device", "cpu", "-j", "0", "-b", "8", *more])


def built(args):
    return setup.build_model(args, CPU, setup.read_start(args))


def test_a_factory_that_makes_another_number_is_blamed(digits_dir, place):
    args = flags(digits_dir, "--model", "mine.py:fixed", "--num-classes", "10")
    with pytest.raises(ModelError, match=r"mine\.py:fixed: expected 10 logits, .* found 1000\. A factory must"):
        built(args)
    assert args.num_classes == 10


def test_whatever_a_model_of_ones_own_raises_is_one_line(digits_dir, place):
    with pytest.raises(ModelError, match="ValueError: not these"):
        built(flags(digits_dir, "--model", "mine.py:odd", "--num-classes", "10"))


def test_a_reset_head_counts_even_if_the_model_forgets(digits_dir, place):
    save_model(load_model("mine.py:forgetful", num_classes=7), "c.pth")
    args = flags(digits_dir, "--model", "mine.py:forgetful", "--initial-checkpoint", "c.pth", "--num-classes", "10")
    assert built(args)[0].num_classes == 10


def test_a_checkpoint_without_a_head_asks_for_the_number(digits_dir, place):
    save_model(small_vit(0), "c.pth", arch=ARCH)
    with pytest.raises(ModelError, match=r"c\.pth has no head, found none\. Give it"):
        built(flags(digits_dir, "--initial-checkpoint", "c.pth"))
    assert built(flags(digits_dir, "--initial-checkpoint", "c.pth", "--num-classes", "10"))[0].num_classes == 10


def test_dropout_is_the_flags_alone(digits_dir, place):
    args = flags(digits_dir, "--model", ARCH, "--initial-checkpoint", "c.pth")
    save_model(
        small_vit(10), "c.pth", arch=ARCH, args={"model": ARCH, "model_kwargs": {"drop_rate": 0.3, "qkv_bias": True}}
    )
    built(args)
    assert args.model_kwargs == {"qkv_bias": True}


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "nowhere.py:make"],
        ["--model", "vit_of_nobody"],
        ["--model", "local-dir:nowhere"],
        ["--model", "mine.py:fixed", "--num-classes", "10"],  # found when it is built
    ],
)
def test_a_model_that_cannot_be_had_leaves_no_folder(digits_dir, place, words, capsys):
    common = ["train", "--data-dir", str(digits_dir), "--device", "cpu", "-j", "0", "--output", "new/runs"]
    assert cli.main([*common, "--experiment", "a", *words]) == 2
    assert words[1].partition(":")[0] in capsys.readouterr().err
    assert not (place / "new").exists()


def test_a_model_of_any_size_takes_the_size_for_its_images_alone(digits_dir, place):
    args = flags(digits_dir, "--model", "resnet18", "--img-size", "64", "--num-classes", "10")
    model = built(args)[0]
    save_model(model, "c.pth", arch="resnet18", args={"model": "resnet18", "img_size": 64})
    assert (model.image_size, load_model(None, "c.pth").image_size, load_model(None, "c.pth").described) == (
        64,
        64,
        {"img_size": 64},
    )
    assert load_model("resnet18", "c.pth", img_size=48).image_size == 48
    assert load_model("resnet18", img_size=48).image_size == 48
    with pytest.raises(ModelError, match="nonsense"):
        load_model("resnet18", img_size=48, nonsense=1)


@pytest.mark.skipif(timm.__version__ < "1", reason="refused under timm 0.5.4")
def test_a_run_from_a_hubs_model_says_so_and_can_be_repeated(digits_dir, place):
    (place / "hub").mkdir()
    vit = small_vit(10)[1]
    save_file({name: value.clone() for name, value in vit.state_dict().items()}, place / "hub" / "model.safetensors")
    config = {"architecture": ARCH, "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (place / "hub" / "config.json").write_text(json.dumps(config))
    words = ["train", "--data-dir", str(digits_dir), "--device", "cpu", "-j", "0", "-b", "8", "--output", "."]
    words += ["--max-steps", "1", "--lr", "0"]
    assert cli.main([*words, "--model", "hub", "--pretrained", "--experiment", "a"]) == 0
    written = yaml.safe_load((place / "a" / "args.yaml").read_text())
    assert (written["model"], written["pretrained"]) == ("hub", True)
    assert cli.main(["train", "-c", "a/args.yaml", "--experiment", "b"]) == 0
    states = [read_checkpoint(f"{name}/last.pth.tar") for name in "ab"]
    assert [state.arch for state in states] == [ARCH, ARCH]
    for name, value in states[0].weights().state.items():
        assert torch.equal(value, states[1].weights().state[name]), name
