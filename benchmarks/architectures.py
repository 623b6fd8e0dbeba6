"""Which transformers work with which part of this package, under the timm that is installed; untrained, on two images.

    python benchmarks/architectures.py                               # prints the table
    python benchmarks/architectures.py --docs docs/architectures.md  # and puts it in the place of this timm's there
    python benchmarks/architectures.py --only vit_micro_patch8_32

A cell says that it works, or refers to the line in which the package refuses; what fails in any other way is said
as well, and the exit code is then 1. The checks are those of ``architecture_checks.py``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from architecture_checks import CHECKS, Check, enliven
from torch import nn

from ns_easyrobust import load_model
from ns_easyrobust.errors import UserError
from ns_easyrobust.evaluation import describe_machine
from ns_easyrobust.utils import write_text

TIMM_1 = not timm.__version__.startswith("0.")
MARK = f"<!-- what benchmarks/architectures.py has seen under timm {'1.x' if TIMM_1 else '0.5.4'} -->"
FAILS = "fails: "


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model by its name, with what it stands for.

    Attributes:
        options: arguments of its factory that make it what it stands for.
        smaller: further ones, so that it takes less time.
        size: height and width of its images, in pixels.
    """

    name: str
    about: str
    options: dict[str, Any] = field(default_factory=dict)
    smaller: dict[str, Any] = field(default_factory=dict)
    size: int = 224

    @property
    def title(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"`{self.name}{options}`"


def small(name: str, about: str, *, size: int = 112, depth: int | None = None, **options: Any) -> Architecture:
    """One that can be built for images of ``size`` pixels, and with ``depth`` blocks."""
    return Architecture(name, about, options, {"img_size": size} | ({"depth": depth} if depth else {}), size)


IN_BOTH = (
    small("vit_tiny_patch16_224", "ViT"),
    Architecture("vit_micro_patch8_32", "ViT of three blocks", size=32),
    small("deit_tiny_distilled_patch16_224", "DeiT: distillation token, two heads"),
    small("beit_base_patch16_224", "BEiT: relative position bias, average pooling"),
    Architecture("swin_tiny_patch4_window7_224", "Swin: windows, no class token"),
    small("cait_xxs24_224", "CaiT: talking heads, class attention, LayerScale"),
    small("convit_tiny", "ConViT: gated positional attention"),
    Architecture("xcit_nano_12_p16_224", "XCiT: attention among channels, convolutional patch embedding"),
    Architecture("pit_ti_224", "PiT: pooling between stages"),
    small("mixer_s32_224", "MLP-Mixer: no attention"),
    Architecture("levit_128s", "LeViT: convolutional stem"),
    Architecture("resnet18", "ResNet: no patch embedding", size=64),
)
IN_TIMM_1 = (
    small("vit_small_patch14_reg4_dinov2", "DINOv2: four registers, LayerScale", depth=6),
    small("deit3_small_patch16_224", "DeiT III: LayerScale", depth=6),
    small("vit_tiny_patch16_224", "average pooling, `fc_norm`", global_pool="avg"),
    Architecture("vit_tiny_patch16_224", "images of any size", {"dynamic_img_size": True}, size=112),
    small("vit_tiny_patch16_224", "drops patches in training", patch_drop_rate=0.5),
    small("vit_wee_patch16_reg1_gap_256", "a register, average pooling, no class token"),
    small("vit_base_patch16_siglip_224", "SigLIP: attention pooling, no class token", depth=5),
    small("flexivit_small", "FlexiViT", depth=6),
    small("vit_relpos_small_patch16_224", "relative position bias", depth=6),
    small("eva02_tiny_patch14_224", "EVA-02: rotary positions, separate q, k and v, SwiGLU"),
    small("vit_small_patch16_rope_224", "rotary positions", depth=6),
    small("vit_small_patch16_dinov3", "DINOv3: rotary positions, registers", depth=6),
    small("beit3_base_patch16_224", "BEiT-3: norms inside", depth=5),
    Architecture("swinv2_tiny_window8_256", "Swin v2: cosine attention in windows", size=256),
    Architecture("hiera_tiny_224", "Hiera: attention in units, pooled"),
)
OF_EASYROBUST = (
    Architecture("mae_vit_base_patch16", "MAE-ViT of EasyRobust: average pooling"),
    Architecture("rvt_tiny", "RVT of EasyRobust: convolutional stem, stages"),
    Architecture("fan_tiny_12_p16_224", "FAN of EasyRobust: attention among channels as well"),
)
ARCHITECTURES = (*IN_BOTH, *(IN_TIMM_1 if TIMM_1 else ()), *OF_EASYROBUST)


def cells(arch: Architecture) -> dict[str, tuple[bool, str]]:
    """For each check whether it works, and what it says: a detail, or why not."""
    torch.manual_seed(0)
    try:
        model = load_model(arch.name, num_classes=10, **arch.options, **arch.smaller).eval()
    except UserError as error:
        return {name: (False, str(error)) for name in CHECKS}
    generator = torch.Generator().manual_seed(0)
    enliven(model[1], generator)
    images, labels = torch.rand(2, 3, arch.size, arch.size, generator=generator), torch.tensor([3, 8])
    return {name: tried(check, model, images, labels) for name, check in CHECKS.items()}


def tried(check: Check, model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> tuple[bool, str]:
    try:
        return True, check(model, images, labels) or ""
    except UserError as error:
        return False, str(error)
    except Exception as error:  # what the package should have refused, or done
        return False, f"{FAILS}{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def table(found: dict[Architecture, dict[str, tuple[bool, str]]]) -> str:
    """Markdown: a row an architecture, a column a check, and the reasons below."""
    reasons: list[str] = []

    def cell(works: bool, detail: str) -> str:
        if works:
            return f"yes, {detail}" if detail else "yes"
        if detail not in reasons:
            reasons.append(detail)
        return f"no [{reasons.index(detail) + 1}]"

    lines = [f"| architecture | what it is | {' | '.join(CHECKS)} |", f"|:--|:--|{':--|' * len(CHECKS)}"]
    for arch, results in found.items():
        lines.append(f"| {arch.title} | {arch.about} | {' | '.join(cell(*results[name]) for name in CHECKS)} |")
    notes = "".join(f"{number}. {escaped(reason)}\n" for number, reason in enumerate(reasons, 1))
    return "\n".join(lines) + "\n" + (f"\n{notes}" if notes else "")


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures of these names alone")
    parser.add_argument("--docs", type=Path, help="a file to write the table into, between the two lines of its mark")
    args = parser.parse_args(argv)
    if args.only and args.docs:
        parser.error("--docs: expected a table of all architectures, found --only. Give one of both.")
    chosen = [arch for arch in ARCHITECTURES if not args.only or arch.name in args.only]
    if not chosen:
        names = ", ".join(dict.fromkeys(arch.name for arch in ARCHITECTURES))
        parser.error(f"--only: expected some of {names}, found {' '.join(args.only)}.")
    if args.docs and (marks := args.docs.read_text(encoding="utf-8").count(MARK)) != 2:
        parser.error(f"--docs: {args.docs}: expected two lines {MARK}, found {marks}.")
    found = {}
    for arch in chosen:
        found[arch] = cells(arch)
        refused = [name for name, (works, _) in found[arch].items() if not works]
        print(f"{arch.title}: {'not ' if refused else 'all'}{', '.join(refused)}", flush=True)
    made = (
        f"timm {timm.__version__}, torch {torch.__version__}, {describe_machine('cpu')}; untrained, seed 0, two "
        f"images of noise, few steps.\n\n{table(found)}"
    )
    print(f"\n{made}")
    if args.docs:
        before, _, rest = args.docs.read_text(encoding="utf-8").split(MARK)
        write_text(args.docs, f"{before}{MARK}\n{made}{MARK}{rest}")
    failed = [arch.name for arch in chosen for _, reason in found[arch].values() if reason.startswith(FAILS)]
    if failed:
        sys.exit(f"not refused, and not working: {', '.join(dict.fromkeys(failed))}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    main()
