"""Compares the saliency maps of this package with those of the public code of Chefer et al. 2021.

git clone https://github.com/hila-chefer/Transformer-Explainability
python benchmarks/published_saliency.py Transformer-Explainability --ckpt-path vit.safetensors --model ARCH IMAGE...

For each rule and precision, the largest difference of a patch's number, as a share of the map's largest, over the
images, which that code explains one by one and this package all at once. It runs that code itself, with the same
weights: its final layer norm gets the eps of timm's, its calls of .cuda() are of no effect, and its Grad-CAM's 14 x 14
patches become the model's. It needs einops.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ns_easyrobust.data import Preprocessing, read_image
from ns_easyrobust.models import all_saliency_maps, load_model

NAMES = {
    "attention": "raw attention", "rollout": "rollout", "attention-grad-cam": "Grad-CAM", "chefer": "LRP",
}  # fmt: skip


@contextmanager
def public_code(clone: str, grid: tuple[int, int]) -> Iterator[tuple[Any, Any, Any]]:
    """Modules of the clone: transformer with LRP, transformer without, and what explains them."""
    reshape = torch.Tensor.reshape

    def of_this_grid(tensor: torch.Tensor, *shape: Any) -> torch.Tensor:
        return reshape(tensor, *((-1, *grid) if shape == (-1, 14, 14) else shape))  # ViT_explanation_generator.py:66

    with (
        mock.patch.object(sys, "path", [clone, *sys.path]),
        mock.patch.object(torch.Tensor, "cuda", lambda self: self),
        mock.patch.object(torch.Tensor, "reshape", of_this_grid),
    ):
        names = ("ViT_LRP", "ViT_new", "ViT_explanation_generator")
        with_lrp, plain, explain = (importlib.import_module(f"baselines.ViT.{name}") for name in names)
        yield with_lrp, plain, explain


def same_transformer(build: Callable[..., Any], vit: Any, **options: Any) -> Any:
    """The public code's transformer with the weights of timm's ``vit``."""
    size, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    blocks = vit.blocks
    model = build(
        img_size=size, patch_size=patch, num_classes=vit.num_classes, embed_dim=vit.embed_dim, depth=len(blocks),
        num_heads=blocks[0].attn.num_heads, mlp_ratio=blocks[0].mlp.fc1.out_features / vit.embed_dim,
        qkv_bias=blocks[0].attn.qkv.bias is not None, **options,
    )  # fmt: skip
    model.load_state_dict(vit.state_dict())
    for name, module in model.named_modules():
        if hasattr(module, "eps"):
            module.eps = vit.get_submodule(name).eps
    return model.eval().to(vit.pos_embed.dtype)


def public_maps(clone: str, vit: Any, normalised: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each rule, (B, h, w), image by image."""
    grid = vit.patch_embed.grid_size
    with public_code(clone, grid) as (with_lrp, plain, explain):
        lrp = explain.LRP(same_transformer(with_lrp.VisionTransformer, vit))
        baselines = explain.Baselines(same_transformer(plain.VisionTransformer, vit))
        rules: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "attention": lambda image: lrp.generate_LRP(image, method="last_layer_attn"),
            "rollout": baselines.generate_rollout,
            "attention-grad-cam": baselines.generate_cam_attn,
            "chefer": lambda image: lrp.generate_LRP(image, method="transformer_attribution"),
        }
        return {
            name: torch.stack([rule(image[None]).detach().reshape(*grid) for image in normalised])
            for name, rule in rules.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clone", help="folder of Transformer-Explainability")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--ckpt-path", required=True)
    parser.add_argument("--model", required=True, help="timm's name of a plain ViT, or FILE:FACTORY")
    args = parser.parse_args()
    model = load_model(args.model, args.ckpt_path).eval()
    transform = Preprocessing(model[1].patch_embed.img_size[0], 0.875, "bicubic").transform()
    pixels = torch.stack([transform(read_image(path)) for path in args.images])
    print(f"{len(pixels)} images, {args.model}: largest difference / largest value")
    for dtype in (torch.float32, torch.float64):
        model, pixels = model.to(dtype), pixels.to(dtype)
        expected = public_maps(args.clone, model[1], model[0](pixels))
        found = all_saliency_maps(model, pixels, NAMES)
        for method, name in NAMES.items():
            tokens, public = found[method].tokens, expected[method]
            if method == "attention-grad-cam":  # which that code scales from 0 to 1
                low, high = tokens.amin((1, 2), keepdim=True), tokens.amax((1, 2), keepdim=True)
                tokens = (tokens - low) / (high - low)
            assert torch.equal(tokens.isnan(), public.isnan())  # of an all-zero map, which that code divides by 0
            there = ~public.isnan().any(2).any(1)
            tokens, public = tokens[there], public[there]
            share = ((tokens - public).abs().amax((1, 2)) / public.abs().amax((1, 2))).max()
            print(f"{name:14} {method:20} {str(dtype).removeprefix('torch.'):8} {float(share):.1e} n={len(public)}")


if __name__ == "__main__":
    main()
