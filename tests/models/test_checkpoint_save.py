"""Every checkpoint form in, safely; two forms out, atomically."""

import pytest
import timm
import timm.models
import torch
from helpers.checkpoints import ARCH, CLASSES, EXTRA, MEAN, STD, logits, make_model, make_vit, same_states
from torch import nn

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.checkpoints import load_model, save_model
from ns_easyrobust.models.vit import with_normalization


def test_metadata_that_holds_itself_is_refused(tmp_path):
    loop: dict = {}
    loop["loop"] = loop
    with pytest.raises(OptionError, match="nested 50 deep"):
        save_model(with_normalization(models.build(ARCH), (0.5,) * 3, (0.5,) * 3), tmp_path / "c.pth", extra=loop)


def test_timm_loads_the_other_layout_raw_and_ema(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    path = tmp_path / "c.pth.tar"
    save_model(model, path, ema=ema, layout="timm", **EXTRA)
    for use_ema, expected in ((False, model), (True, ema)):
        vit = timm.create_model(ARCH, num_classes=CLASSES)
        timm.models.load_checkpoint(vit, str(path), use_ema=use_ema)
        assert torch.equal(logits(with_normalization(vit, MEAN, STD)), logits(expected))
        ours = load_model(ARCH, path, ema=use_ema, num_classes=CLASSES)
        assert torch.equal(logits(ours), logits(expected))
        assert ours.normalization_origin == "checkpoint"
    content = torch.load(path)
    assert content["mean"] == pytest.approx(MEAN)
    assert type(content["mean"]) is list
    assert "mean_ema" not in content
    vit = timm.create_model(ARCH, num_classes=CLASSES, checkpoint_path=str(path))
    assert isinstance(vit, nn.Module)


def test_bare_model_saves_in_timms_layout_only(tmp_path):
    vit = make_vit()
    save_model(vit, tmp_path / "c.pth", layout="timm")
    assert same_states(torch.load(tmp_path / "c.pth")["state_dict"], vit.state_dict())
    with pytest.raises(ModelError, match="input normalisation in front"):
        save_model(vit, tmp_path / "d.pth")
    assert not (tmp_path / "d.pth").exists()


def test_saving_copies_no_more_than_the_tensors(tmp_path):
    model = make_model()
    storage = torch.zeros(1_000_000)
    model[1].head.bias.data = storage[:CLASSES]
    save_model(model, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 2_000_000
    assert next(model.parameters()).requires_grad


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"args": {"fn": print}}, r"args\.fn: expected tensors and plain values .* found builtin_function"),
        ({"module": nn.Linear(1, 1)}, "module: .*found Linear"),
        ({"state_dict_ema": {}}, "names beside the weights, found state_dict_ema"),
        ({"mean": [0.5]}, "names beside the weights, found mean"),
    ],
)
def test_extra_that_cannot_be_plain_is_refused(tmp_path, extra, match):
    with pytest.raises(OptionError, match=match):
        save_model(make_model(), tmp_path / "c.pth", **extra)
    with pytest.raises(OptionError, match="layout: expected easyrobust or timm, found 'torch'"):
        save_model(make_model(), tmp_path / "c.pth", layout="torch")
    assert list(tmp_path.iterdir()) == []
