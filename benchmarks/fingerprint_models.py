"""Independently trained models, and models derived from them, for ``ns-easyrobust experiment fingerprint``.

    python benchmarks/fingerprint_models.py CLASS_FOLDERS OUT [--start NAME=FILE ...]

``CLASS_FOLDERS`` has train/ and val/. OUT gets ``independent/RECIPE/seedN.pth.tar``, ``claimed/NAME.*`` and
``derived/KIND/NAME/*.pth.tar``: each is made once, so that the same command goes on where it stopped. One core takes
about 35 minutes for the default, CIFAR-10's 50000 images and a ViT of 64 features a token.
"""

from __future__ import annotations

import argparse
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fingerprint_training import Images, Recipe, accuracy, fit, read_images

from ns_easyrobust.experiments import split_ending
from ns_easyrobust.models import NormalizedModel, find_patch_embed, load_model, save_model
from ns_easyrobust.utils import FileLock, derive_seed, fork_rng, parse_json, write_atomically

RECIPES = {
    "base": Recipe(),
    "low-lr": Recipe(lr=5e-4),
    "high-lr": Recipe(lr=5e-3),
    "plain-images": Recipe(augment="none", decay=0.0),
    "crops": Recipe(augment="zoom"),
    "even-half": Recipe(half=0),
    "odd-half": Recipe(half=1, augment="flip"),
    "timm-start": Recipe(start=1),
}
PARTS = ("independent", "unlearnt", "learnt")
CLAIMED = ("base", "low-lr", "crops")  # whose seed 0 is what others are derived from
FINETUNING = {
    "lr-1e-4": Recipe(lr=1e-4, augment="zoom"),
    "lr-1e-3": Recipe(lr=1e-3, augment="zoom", half=1),
    "lr-5e-3": Recipe(lr=5e-3, augment="flip", half=0),
}
PRUNED = (0.3, 0.5, 0.7, 0.9)
BITS = (8, 4)
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_USES = {"independent": 0, "finetuned": 1, "frozen": 2, "distilled": 3, "replaced": 4}


class Maker:
    """Makes what is not there yet.

    Args:
        args: as :func:`main` reads them.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.epochs, self.seeds, self.short = args.output, args.epochs, args.seeds, args.short_epochs
        self.arch, self.options = args.model, args.model_kwargs
        self._args, self._training, self._judging = args, None, None

    @property
    def training(self) -> Images:
        if self._training is None:
            args = self._args
            self._training = read_images(args.folder / "train", args.image_size, args.crop_pct, "train")
        return self._training

    @property
    def judging(self) -> Images:
        if self._judging is None:
            args = self._args
            self._judging = read_images(args.folder / "val", args.image_size, args.crop_pct, "val", args.val_images)
        return self._judging

    def fresh(self, seed: int, start: float = Recipe.start) -> NormalizedModel:
        """A model of random weights, those of the patch embedding multiplied by ``start``."""
        with fork_rng(seed):
            model = load_model(self.arch, num_classes=len(self.judging.labels.unique()), model_kwargs=self.options)
        with torch.no_grad():
            embedding(model).mul_(start)
        return model

    def fit(self, model: NormalizedModel, recipe: Recipe, epochs: float, seed: int, name: str, **more: Any) -> None:
        fit(model, self.training, recipe, epochs, seed, name, self._args.batch_size, **more)

    def load(self, path: Path) -> NormalizedModel:
        return load_model(self.arch, path, model_kwargs=self.options).eval()

    def save(self, path: Path, model: NormalizedModel, **told: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        told |= {"accuracy": accuracy(model, self.judging), "n": len(self.judging.labels)}
        save_model(model, path, arch=self.arch, args={"model": self.arch, "model_kwargs": self.options}, **told)
        print(f"{path.relative_to(self.out)}: {100 * float(told['accuracy']):.1f}% of {told['n']}", flush=True)

    def independent(self) -> None:
        """``independent/RECIPE/seedN.pth.tar``: another start, order and images' views for each."""
        for seed in range(self.seeds):
            for number, (name, recipe) in enumerate(RECIPES.items()):
                path = self.out / "independent" / name / f"seed{seed}.pth.tar"
                if not path.exists():
                    own = derive_seed(_USES["independent"], number, seed)
                    model = self.fresh(own, recipe.start)
                    start = embedding(model).clone()
                    self.fit(model, recipe, self.epochs, own, f"{name} {seed}")
                    self.save(path, model, recipe=vars(recipe), epochs=self.epochs, start_embedding=start)

    def unlearnt(self) -> None:
        """``claimed/NAME.*`` and those of ``derived/KIND/NAME/*`` that need no training."""
        for name, claimed in self.claimed().items():
            self._unlearnt(name, claimed)

    def learnt(self) -> None:
        """The others of ``derived/KIND/NAME/*``."""
        for number, (name, claimed) in enumerate(self.claimed().items()):
            self._learnt(name, claimed, number)

    def claimed(self) -> dict[str, Path]:
        """The claimed models, copied: some of the independent ones where they are, and those of --start."""
        given = {name: Path(file) for name, file in (each.split("=", 1) for each in self._args.start)}
        own = {name: self.out / "independent" / name / "seed0.pth.tar" for name in CLAIMED}
        found = {}
        for name, source in {**{name: path for name, path in own.items() if path.exists()}, **given}.items():
            found[name] = self.out / "claimed" / f"{name}{split_ending(source)[1]}"
            if not found[name].exists():
                found[name].parent.mkdir(parents=True, exist_ok=True)
                write_atomically(found[name], partial(shutil.copyfile, source))
        return found

    def _unlearnt(self, name: str, claimed: Path) -> None:
        for share in PRUNED:
            if not (path := self._path(f"pruned-{100 * share:.0f}%", name)).exists():
                self.save(path, pruned(self.load(claimed), share))
        for bits in BITS:
            if not (path := self._path(f"int{bits}", name)).exists():
                self.save(path, quantised(self.load(claimed), bits))
        for kind, dtype in TYPES.items():
            if not (path := self._path(kind, name)).exists():
                model = self.load(claimed)
                self.save(path, model.to(dtype).float())  # as it computes after the file was read

    def _learnt(self, name: str, claimed: Path, number: int) -> None:
        for turn, (kind, recipe) in enumerate(FINETUNING.items()):
            if not (path := self._path(f"finetuned-{kind}", name)).exists():
                model = self.load(claimed)
                self.fit(model, recipe, self.short, derive_seed(_USES["finetuned"], number, turn), kind)
                self.save(path, model, recipe=vars(recipe), epochs=self.short)
        if not (path := self._path("frozen", name)).exists():
            model = self.load(claimed)
            for each in find_patch_embed(model).parameters():
                each.requires_grad_(False)
            recipe = Recipe(lr=1e-3)
            self.fit(model, recipe, self.short / 2, derive_seed(_USES["frozen"], number), "frozen")
            self.save(path, model, recipe=vars(recipe), epochs=self.short / 2)
        if not (path := self._path("replaced", name)).exists():
            model, own = self.load(claimed), derive_seed(_USES["replaced"], number)
            find_patch_embed(model).load_state_dict(find_patch_embed(self.fresh(own)).state_dict())
            for weight_name, each in model.named_parameters():
                each.requires_grad_("patch_embed" in weight_name)
            self.fit(model, Recipe(), self.short / 2, own, "replaced")
            self.save(path, model, epochs=self.short / 2)
        if not (path := self._path("distilled", name)).exists():
            own = derive_seed(_USES["distilled"], number)
            model, teacher = self.fresh(own), self.load(claimed)
            self.fit(model, Recipe(), self.epochs, own, "distilled", teacher=teacher)
            self.save(path, model, epochs=self.epochs)

    def _path(self, kind: str, name: str) -> Path:
        return self.out / "derived" / kind / name / "model.pth.tar"


def embedding(model: NormalizedModel) -> torch.Tensor:
    """The weight (D, C, p, p) of the patch embedding."""
    weight: torch.Tensor = find_patch_embed(model).proj.weight.detach()  # type: ignore[union-attr]
    return weight


@torch.no_grad()
def pruned(model: NormalizedModel, share: float) -> NormalizedModel:
    """The matrices' and kernels' smallest weights, over all of them, are 0."""
    weights = [each for name, each in model.named_parameters() if name.endswith("weight") and each.ndim > 1]
    values = torch.cat([each.abs().flatten() for each in weights])
    cut = values.kthvalue(math.floor(share * len(values))).values
    for each in weights:
        each[each.abs() <= cut] = 0
    return model


@torch.no_grad()
def quantised(model: NormalizedModel, bits: int) -> NormalizedModel:
    """Weights of matrices and kernels rounded to ``bits``, with a symmetric scale for each output."""
    most = 2 ** (bits - 1) - 1
    for name, each in model.named_parameters():
        if name.endswith("weight") and each.ndim > 1:
            rows = each.flatten(1)
            scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / most
            each.copy_(((rows / scale).round() * scale).view_as(each))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="has train/ and val/, each with a folder a class")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="vit_micro_patch8_32", help="default: vit_micro_patch8_32")
    parser.add_argument("--model-kwargs", type=parse_json, default={}, help="JSON, for the architecture (default: {})")
    parser.add_argument("--image-size", type=int, default=32, help="pixels (default: 32)")
    parser.add_argument("--crop-pct", type=float, default=1.0, help="of the shorter side (default: 1)")
    parser.add_argument("--epochs", type=float, default=2, help="of independent and distilled models (default: 2)")
    parser.add_argument("--short-epochs", type=float, default=1, help="of finetuned ones; others half (default: 1)")
    parser.add_argument("--batch-size", type=int, default=128, help="default: 128")
    parser.add_argument("--seeds", type=int, default=3, help="independent models a recipe (default: 3)")
    parser.add_argument("--start", nargs="+", default=[], metavar="NAME=FILE", help="further claimed models")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--val-images", type=int, default=10**9, metavar="N", help="to judge on (default: all)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    maker = Maker(args)
    for part in args.parts:
        with FileLock(args.output / f".{part}.lock", "these models"):
            getattr(maker, part)()


if __name__ == "__main__":
    main()
