"""Checkpoint files of a small model, and EasyRobust's own way to read them."""

import argparse
from pathlib import Path

import numpy as np
import timm
import timm.models
import torch
from timm.utils import CheckpointSaver, ModelEmaV2
from torch import nn

from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.normalization import with_normalization

ARCH, CLASSES = "vit_micro_patch8_32", 5


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make_vit(seed=0, **kwargs):
    """A bare ViT with a head that is not zero, as timm 0.5.4 leaves it."""
    vit = models.build(ARCH, num_classes=CLASSES, **kwargs).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vit


def jax_arrays(vit, prefix=""):
    """The augreg layout of a timm ViT, after the reading code in timm's vision_transformer.py."""
    state = {name: value.numpy() for name, value in vit.state_dict().items()}
    heads, width = 4, 64
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(vit.blocks)):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        weights = np.split(state[ours + "attn.qkv.weight"], 3)
        biases = np.split(state[ours + "attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{block}MultiHeadDotProductAttention_1/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{block}MultiHeadDotProductAttention_1/{name}/bias"] = bias.reshape(heads, -1)
        out = state[ours + "attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{block}MultiHeadDotProductAttention_1/out/kernel"] = out
        arrays[f"{block}MultiHeadDotProductAttention_1/out/bias"] = state[ours + "attn.proj.bias"]
        for r in (0, 1):
            arrays[f"{block}MlpBlock_3/Dense_{r}/kernel"] = state[f"{ours}mlp.fc{r + 1}.weight"].T
            arrays[f"{block}MlpBlock_3/Dense_{r}/bias"] = state[f"{ours}mlp.fc{r + 1}.bias"]
            arrays[f"{block}LayerNorm_{2 * r}/scale"] = state[f"{ours}norm{r + 1}.weight"]
            arrays[f"{block}LayerNorm_{2 * r}/bias"] = state[f"{ours}norm{r + 1}.bias"]
    return {prefix + name: array for name, array in arrays.items()}


def make_model(seed=0):
    return with_normalization(make_vit(seed), MEAN, STD).eval()


def logits(model, images=IMAGES):
    with torch.no_grad():
        return model.eval()(images)


def same_states(first, second):
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    return text


class NormalizeByChannelMeanStd(nn.Module):
    """As in EasyRobust's benchmarks/benchmark.py:51-68."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, tensor):
        return tensor.sub(self.mean[None, :, None, None]).div(self.std[None, :, None, None])


def easyrobust_benchmark_model(ckpt_path, use_ema, arch=ARCH, classes=CLASSES):
    """benchmarks/benchmark.py:74-101 at its defaults, statement by statement, without .cuda()."""
    model = timm.models.create_model(arch, pretrained=False, num_classes=classes)
    normalize = NormalizeByChannelMeanStd(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    ckpt = torch.load(ckpt_path)
    if use_ema:
        assert ckpt.get("state_dict_ema") is not None, "no ema state_dict found!"
        state_dict = ckpt["state_dict_ema"]
    elif "state_dict" in ckpt:
        state_dict = ckpt["state_dict"]
    else:
        state_dict = ckpt
    if "0.mean" in state_dict and "0.std" in state_dict:
        model = nn.Sequential(normalize, model)
        model.load_state_dict(state_dict)
    else:
        model.load_state_dict(ckpt)
        model = nn.Sequential(normalize, model)
    return model.eval()


EXTRA = {
    "arch": ARCH,
    "epoch": np.int64(3),
    "metric": np.float64(77.5),
    "args": argparse.Namespace(
        data_dir=Path("a") / "b", lr=1e-5, device=torch.device("cpu"), betas=(0.9, np.float32(0.5))
    ),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
}


def timm_checkpoint(folder):
    """A real training checkpoint: timm's saver, an optimizer with state, ModelEmaV2, a Namespace."""
    model, ema_source = make_model(), make_model(seed=1)
    ema = ModelEmaV2(model, decay=0.5)
    ema.module.load_state_dict(ema_source.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), 0.0)
    model(IMAGES).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model=ARCH, lr=0.1, drop=None, aug_splits=0, betas=[0.9, 0.99])
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, checkpoint_dir=str(folder))
    saver.save_checkpoint(7, np.float64(81.5))
    return folder / "model_best.pth.tar", model, ema.module
