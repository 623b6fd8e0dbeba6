"""What ``architectures.py`` tries on a model: one function for each thing that a user may want of it.

A check takes the model (normalisation in front, eval mode), images (B, 3, H, W) in [0, 1] and labels (B,); it returns
a detail for the table or nothing, raises UserError where the product refuses the model, and AssertionError where it ran
and did the wrong thing.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable

import torch
from torch import nn

from ns_easyrobust import Noise, NoiseConfig, NullspaceAugmentation, PatchFoolConfig, encoder_noise, synthesize
from ns_easyrobust.attacks import FGSM
from ns_easyrobust.models import attention_maps, find_patch_embed, logits_of, token_shape
from ns_easyrobust.models.heads import reset_head
from ns_easyrobust.nullspace import patch_nullspace, valid_nullspace_noise
from ns_easyrobust.utils import replaced_attributes

Check = Callable[[nn.Sequential, torch.Tensor, torch.Tensor], "str | None"]


def enliven(vit: nn.Module, generator: torch.Generator) -> None:
    """Give an untrained model's layer scales the value 1, and draw its heads: zero or nearly so, both would hide what
    reaches the logits."""
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.ndim == 1 and 0 < float(parameter.abs().max()) < 1e-2:
                parameter.fill_(1.0)
            elif parameter.ndim == 2 and float(parameter.abs().max()) < 1e-2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[1]))


def hook(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Noise reaches the logits, and none at all leaves them as they are, bit for bit."""
    shape = token_shape(model, images)
    found = []
    for value in torch.zeros(shape), torch.randn(shape, generator=torch.Generator().manual_seed(0)):
        with torch.no_grad(), encoder_noise(model, value) as inner:
            found.append(logits_of(inner(images), len(images)))
    with torch.no_grad():
        assert torch.equal(found[0], logits_of(model(images), len(images))), "noise of zeros changes the logits"
    assert not torch.allclose(found[0], found[1]), "noise does not change the logits"


def algorithm_1(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Two steps of Algorithm 1 move the noise."""
    _require_moved(synthesize(model, [images], NoiseConfig(max_steps=2, eps=1e-12)), 2)


def sphere(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """The sphere solver in few steps; its last radius is set on these images in place of 512."""
    solver = importlib.import_module("ns_easyrobust.nullspace.solvers.sphere_search")
    with replaced_attributes(solver, _FINAL_IMAGES=len(images)):
        _require_moved(synthesize(model, [images], NoiseConfig(solver="sphere", max_steps=2, pool=1, eps=0.03)), 1)


def _require_moved(noise: Noise, updates: int) -> None:
    assert noise.steps >= updates, f"{noise.steps} updates"
    assert torch.isfinite(noise.value).all(), "not finite"
    assert noise.norm > 0, "the noise is zero"


def training_step(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """The companion loss reaches the patch embedding, and a step changes its weights."""
    model = copy.deepcopy(model).train()
    companion = NullspaceAugmentation(model, [(images, labels)], NoiseConfig(max_steps=2))
    parameters = [parameter for parameter in find_patch_embed(model).parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    loss = companion.loss(images, labels, _loss_of_any_output)
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)), "no weight changed"


def _loss_of_any_output(output: object, target: torch.Tensor) -> torch.Tensor:
    """The cross-entropy; over both heads of a distilled DeiT, which returns a pair in training under timm 0.5.4."""
    heads = output if isinstance(output, tuple) else (output,)
    return torch.stack([nn.functional.cross_entropy(logits_of(head, len(target)), target) for head in heads]).mean()


def fgsm(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    changed = (FGSM(epsilon=1 / 255)(model, images, labels, range(len(images))) - images).abs()
    assert 0 < changed.max() <= 1 / 255 + 1e-6, f"moved by {float(changed.max())}"


def attention(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Each block's attention can be read: rows that sum to 1."""
    with torch.no_grad(), attention_maps(model) as maps:
        maps.model(images)
    for layer in maps:
        sums = maps[layer].sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-4), f"block {layer}: rows do not sum to 1"


def patchfool(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """With the published settings: one patch, chosen by attention, which is attacked too."""
    _require_one_patch_changed(model, images, labels, PatchFoolConfig(steps=2))


def patchfool_ce(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Without attention: one patch, chosen by its gradient, under the cross-entropy alone."""
    _require_one_patch_changed(model, images, labels, PatchFoolConfig(steps=2, select="saliency", loss="ce"))


def _require_one_patch_changed(
    model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, attack: PatchFoolConfig
) -> None:
    changed = (attack(model, images, labels, range(len(images))) != images).any(1)
    for image in changed:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        assert len(rows), "an image stayed as it was"
        extent = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
        assert extent <= 32, f"a patch of {extent} pixels"


def exact_nullspace(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> str:
    """Large noise of the patch embedding's nullspace leaves the logits; the detail is the nullspace's dimension."""
    basis = patch_nullspace(model, space="pixel")
    noise = valid_nullspace_noise(model, images, generator=torch.Generator().manual_seed(0), iterations=20)
    with torch.no_grad():
        clean, noisy = (logits_of(model(pixels), len(images)) for pixels in (images, images + noise))
    assert torch.allclose(clean, noisy, atol=1e-2 * float(clean.std())), "the logits changed"
    return f"{len(basis)} of {basis.shape[1]}"


def new_head(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """As a checkpoint for another number of classes gets it."""
    model = copy.deepcopy(model)
    reset_head(model[1], 7, str(model.arch), images.shape[-1])
    with torch.no_grad():
        shape = tuple(logits_of(model.eval()(images), len(images)).shape)
    assert shape == (len(images), 7), f"logits of shape {shape}"


CHECKS: dict[str, Check] = {
    "hook": hook,
    "Algorithm 1": algorithm_1,
    "sphere": sphere,
    "training step": training_step,
    "FGSM": fgsm,
    "attention": attention,
    "PatchFool": patchfool,
    "PatchFool, no attention": patchfool_ce,
    "exact nullspace": exact_nullspace,
    "new head": new_head,
}
