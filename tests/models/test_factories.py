"""Models of one's own: what a factory is given, what it may return, and one line for everything else."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.checkpoints import logits, one_line

from ns_easyrobust.errors import ModelError, OptionError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.checkpoint_save import export_checkpoint, save_model
from ns_easyrobust.models.checkpoints import load_model
from ns_easyrobust.models.factories import is_factory

FILE = '''
import sys
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from ns_easyrobust.models.normalization import with_normalization

SHAPE = {"patch_size": 8, "embed_dim": 48, "num_heads": 3}
calls = []


def vit(num_classes, img_size=32, depth=1):
    calls.append({"num_classes": num_classes, "img_size": img_size, "depth": depth})
    print("made")
    return VisionTransformer(img_size=img_size, depth=depth, num_classes=num_classes, **SHAPE)


def open_to_all(**kwargs):
    calls.append(kwargs)
    return vit(kwargs["num_classes"])


def normalised(num_classes):
    return with_normalization(vit(num_classes), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


class Pixels(nn.Module):
    """Has no num_classes, and always three outputs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def fixed():
    return Pixels()


def neighbour():
    import beside

    return beside.make()


def raises(num_classes):
    raise RuntimeError("no\\nluck")


def exits():
    sys.exit(3)


def pair():
    return nn.Linear(1, 1), 2


def nothing():
    pass


def no_logits():
    return nn.Identity()


number = 3
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("from mine import fixed as make\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "mine.py"
    for name in ("mine", "beside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["mine.py:vit", "./mine.py:vit", "mine:vit", "mine:open_to_all"])
def test_a_file_and_a_module_build_and_load_strictly(file, tmp_path, name, capsys):
    model = load_model(name, num_classes=4)
    assert (model.arch, model.num_classes, model.image_size) == (name, 4, 32)
    assert logits(model).shape == (4, 4)
    printed = capsys.readouterr()
    assert "made" not in printed.out
    assert "made" in printed.err
    assert str(tmp_path) not in sys.path
    save_model(model.eval(), "c.pth", arch=name)
    loaded = load_model(name, "c.pth")  # classes from the file
    assert torch.equal(logits(loaded), logits(model))
    assert load_model(name, "c.pth", num_classes=2, new_head=True).num_classes == 2


def test_what_a_factory_is_given(file):
    build = models.build("mine.py:vit", num_classes=5, img_size=16, depth=2, drop_rate=0.0, spare=None)
    assert (len(build.blocks), build.pos_embed.shape[1]) == (2, 5)
    with pytest.raises(ModelError, match="takes drop_rate, found num_classes, img_size, depth"):
        models.build("mine.py:vit", drop_rate=0.1)
    with pytest.raises(ModelError, match="takes width, found") as caught:
        load_model("mine.py:vit", width=3)
    one_line(caught)
    with pytest.raises(OptionError, match=r"pretrained: .* mine\.py:vit"):
        load_model("mine.py:vit", pretrained=True)


def test_a_normalisation_in_front_is_its_own(file):
    model = load_model("mine.py:normalised", num_classes=2)
    assert model.normalization_origin == "factory"
    assert model.mean == pytest.approx([0.1, 0.2, 0.3])
    assert type(model[1]).__name__ == "VisionTransformer"
    assert load_model("mine.py:normalised", num_classes=2, mean=[0.5], std=[0.5]).mean == [0.5] * 3


def test_a_model_that_says_no_number_of_classes_is_counted(file):
    assert load_model("mine.py:fixed").num_classes == 3
    assert load_model("mine.py:neighbour").num_classes == 3


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mine.py:raises", r"RuntimeError: no luck \(mine\.py, line \d+\)"),
        ("mine.py:exits", r"sys\.exit\(3\)"),
        ("mine.py:pair", "returns an nn.Module, found tuple of 2"),
        ("mine.py:nothing", "returns an nn.Module, found NoneType"),
        ("mine.py:no_logits", "mine.py:no_logits: expected logits of zeros, found .*a tensor of shape"),
        ("mine.py:number", "expected a function number in mine.py, found int"),
        ("mine.py:absent", "found nothing of that name"),
        ("nowhere.py:make", "expected a Python file, found none at nowhere.py"),
        ("no_such_package.x:make", "found none called no_such_package"),
        ("mine.x:make", "found none called mine.x|not a package"),
        ("a b:make", "expected pkg.module:function or file.py:function"),
        ("broken.py:make", r"SyntaxError: .* \(broken\.py"),
        ("quits.py:make", r"sys\.exit\('bye'\)"),
        ("needs.py:make", "ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_whatever_is_wrong_is_one_line(file, tmp_path, name, found):
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "needs.py").write_text("import no_such_thing\n")
    with pytest.raises(ModelError, match=found) as caught:
        load_model(name)
    assert len(one_line(caught)) < 1000
    assert name in one_line(caught)


def test_a_file_that_was_changed_is_read_anew(file, tmp_path):
    path = tmp_path / "new.py"
    body = "import torch\ndef make():\n    model = torch.nn.Flatten()\n    model.num_classes = {}\n    return model\n"
    path.write_text(body.format(1))
    assert models.build("new.py:make").num_classes == 1
    path.write_text(body.format(22))
    assert models.build("new.py:make").num_classes == 22


@pytest.mark.parametrize("arch", ["mine.py:vit", "os:system", "hf-hub:owner/name", "/etc"])
def test_a_file_never_chooses_what_is_run(file, tmp_path, arch, monkeypatch):
    """Or whoever sends a checkpoint could run code by it."""
    model = load_model("mine.py:vit", num_classes=2)
    save_model(model, "c.pth", arch=arch, args={"model": arch, "model_kwargs": {"command": "touch ran"}})
    ran = []
    monkeypatch.setattr("ns_easyrobust.models.architectures.build_from_factory", lambda *_, **__: ran.append(1))
    with pytest.raises(ModelError, match="which is never run unless it is given"):
        load_model(None, "c.pth")
    export_checkpoint("c.pth", tmp_path / "d.pth", "timm")
    assert not ran


def test_which_names_are_factories():
    assert all(map(is_factory, ("a.b:c", "a/b.py:c", "~/x y.py:c", "é.py:ß")))
    names = ("vit_small_patch16_224", "hf-hub:a", "hf_hub:timm", "local-dir:x", "vit.augreg", "http://a/b", "a:", ":b")
    assert not any(map(is_factory, names))
