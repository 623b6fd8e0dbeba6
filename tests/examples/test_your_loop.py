"""``examples/your_loop.py`` on a few digits: it trains, says what is so, and its one line matters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ns_easyrobust.models.architectures import build

SCRIPT = Path(__file__).parents[2] / "examples" / "your_loop.py"
LINE = "loss = loss + ns.loss(images, labels, loss_fn)"


@pytest.fixture
def photos(digits_dir, tmp_path) -> Path:
    """Of two digits 16 for training and 10 for validation."""
    for split, number in (("train", 16), ("val", 10)):
        for name in ("3", "8"):
            target = tmp_path / "photos" / split / name
            target.mkdir(parents=True)
            for path in sorted((digits_dir / split).glob(f"*{name}/*"))[:number]:
                shutil.copy(path, target)
    return tmp_path / "photos"


def trained(source: str, photos: Path) -> dict[str, torch.Tensor]:
    scope = {"__name__": "your_loop"}
    exec(compile(source, SCRIPT.name, "exec"), scope)
    scope["main"](str(photos), "vit_micro_patch8_32", "2")
    return torch.load("model.pth", weights_only=True)


def test_it_says_what_is_so_and_the_one_line_matters(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTS", "none")
    build("vit_micro_patch8_32")  # which timm knows from now on
    source = SCRIPT.read_text(encoding="utf-8")
    weights = trained(source, photos)
    *_, last = capsys.readouterr().out.splitlines()
    said = re.fullmatch(r"epoch 1: (\d+)/20 right; noise of norm [\d.]+: mse_probability [\d.]+, \d+% of .*", last)
    assert said, last
    model = build("vit_micro_patch8_32", num_classes=2)
    model.load_state_dict(weights)
    steps = [transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    images, labels = next(iter(DataLoader(datasets.ImageFolder(photos / "val", transforms.Compose(steps)), 20)))
    assert int((model.eval()(images).argmax(1) == labels).sum()) == int(said[1])
    assert source.count(LINE) == 1
    without = trained(source.replace(LINE, "ns.loss(images, labels, loss_fn)"), photos)
    assert not all(torch.equal(weights[name], without[name]) for name in weights)
