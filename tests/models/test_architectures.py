import subprocess
import sys
import urllib.error

import pytest
import timm
import timm.data
import torch
from timm.models import register_model
from torch import nn

from ns_easyrobust.errors import CheckpointError, ModelError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.utils import packages

MICRO = {"vit_micro_patch8_32": (16, 64), "vit_micro_patch4_32": (64, 192), "swin_micro_patch2_32": (256, 24)}


@register_model
def ns_test_offline(pretrained=False, **kwargs):
    if pretrained:
        raise urllib.error.URLError("Name or service not known")
    return nn.Identity()


@register_model
def ns_test_unpublished(pretrained=False, **kwargs):
    model = nn.Identity()
    model.default_cfg = {"url": ""}
    return model


@pytest.mark.parametrize("arch", MICRO)
def test_micro_models_map_images_to_logits_and_have_one_patch_embed(arch):
    model = models.build(arch, num_classes=7).eval()
    images = torch.rand(2, 3, 32, 32)
    assert model(images).shape == (2, 7)
    tokens = model.patch_embed(images)
    assert tokens.reshape(2, -1, tokens.shape[-1]).shape[1:] == MICRO[arch]


@pytest.mark.parametrize("arch", MICRO)
def test_timm_finds_micro_models_with_the_arguments_of_easyrobusts_script(arch):
    # base_training_script.py:368-380, its defaults
    model = timm.create_model(
        arch,
        pretrained=False,
        num_classes=10,
        drop_rate=0.0,
        drop_connect_rate=None,
        drop_path_rate=0.2,
        drop_block_rate=None,
        global_pool=None,
        bn_momentum=None,
        bn_eps=None,
        scriptable=False,
        checkpoint_path="",
    )
    assert model.num_classes == 10
    config = timm.data.resolve_data_config({}, model=model)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["input_size"] == (3, 32, 32)
    assert config["crop_pct"] == 1.0
    assert config["interpolation"] == "bicubic"
    drops = {getattr(module, "drop_prob", None) for module in model.modules()} - {None}
    assert max(drops) == pytest.approx(0.2)  # drop_path_rate arrived


def test_micro_models_take_channels_and_image_size():
    model = models.build("vit_micro_patch8_32", num_classes=3, in_chans=1, img_size=16).eval()
    assert model(torch.rand(1, 1, 16, 16)).shape == (1, 3)
    config = timm.data.resolve_data_config({}, model=model)
    assert config["input_size"] == (1, 16, 16)
    assert config["mean"] == (0.5,)


def test_timm_model_is_built_without_importing_easyrobust(monkeypatch):
    monkeypatch.setattr(models, "import_package", lambda name, purpose: pytest.fail(f"imported {name}"))
    model = models.build("deit_tiny_patch16_224", num_classes=4, drop_path_rate=None)
    assert model.head.out_features == 4


def test_easyrobust_model_is_found_when_timm_does_not_know_it():
    pytest.importorskip("easyrobust.models")
    model = models.build("rvt_tiny", num_classes=6, drop_path_rate=0.1)
    assert type(model).__module__ == "easyrobust.models.rvt"
    assert model.num_classes == 6


@pytest.mark.skipif(timm.__version__.startswith("0."), reason="they are written for timm 0.5.4")
def test_easyrobusts_models_that_timm_1_does_not_run_are_refused():
    """Its MAE-ViT is called with arguments that it does not take, its FAN built with some."""
    with pytest.raises(ModelError, match=r"expected timm 0\.5\.4, .* found timm 1\..*does not run .*attn_mask"):
        models.build("mae_vit_base_patch16")
    with pytest.raises(ModelError, match=r"fan_tiny_12_p16_224 could not be built under timm 1\..* another timm"):
        models.build("fan_tiny_12_p16_224")
    assert models.build("rvt_tiny").training


def test_missing_dependency_of_easyrobusts_models_is_named(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    monkeypatch.setattr(packages.importlib, "import_module", fail)
    with pytest.raises(ModelError, match=r"'ns_no_such'.*pkg_resources.*pip install .*PyWavelets") as caught:
        models.build("ns_no_such")
    assert "\n" not in str(caught.value)


def test_unknown_name_gets_close_matches():
    with pytest.raises(ModelError, match=r"found 'vit_micro_patch8_23'. Did you mean vit_micro_patch8_32"):
        models.build("vit_micro_patch8_23")
    with pytest.raises(ModelError, match="unknown model"):
        models.build("vit_tiny_patch16_224.no_such_tag" if timm.__version__ < "0.9" else "zzzz")


@pytest.mark.parametrize("arch", ["vit_micro_patch8_32", "deit_tiny_patch16_224"])
def test_argument_the_architecture_does_not_take_is_one_line(arch):
    with pytest.raises(ModelError, match=r"could not be built.*nonsense=3") as caught:
        models.build(arch, nonsense=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "match"),
    [
        ("vit_micro_patch8_32", "none published"),
        ("ns_test_unpublished", "none published"),
        ("ns_test_offline", "Name or service not known"),
    ],
)
def test_pretrained_weights_that_cannot_be_had_are_an_error(arch, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        models.build(arch, pretrained=True)
    assert "\n" not in str(caught.value)


def test_a_script_with_the_hooks_three_lines_finds_them():
    code = """if True:
        import timm
        from ns_easyrobust import nullspace_augmented
        train_one_epoch = nullspace_augmented(lambda *args: None)
        print(type(timm.create_model("vit_micro_patch8_32")).__name__)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "VisionTransformer\n", done.stderr
