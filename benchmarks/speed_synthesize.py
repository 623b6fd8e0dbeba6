"""The synthesis of nullspace noise beside the published loop (``plain_synthesis.py``): a step of it, and a noise.

    python benchmarks/speed.py synthesize [--case ARCH CHECKPOINT FOLDER]... [--plot docs/synthesis.png]
    python benchmarks/speed.py synthesize --device cuda --step vit_base_patch16_224 128 64 \\
        --rounds vit_base_patch16_224 --batch-size 128

First a step: the plain loop's, ours with a fresh batch each step, ours with kept clean logits (the pool is filled
within the time measured, its reuse stated), on a GPU with bfloat16 too; and the peak memory beside a training step's.
Then a noise, on the demo's ViT (trained here on scikit-learn's digits) and on each ``--case``: how long the plain
loop takes to its own stop, or how far it is after ``--seconds``, and how large its noise is once it is scaled to
where the upper bound on held-out images is just under eps; the same for the sphere solver, and for random noise.
``--rounds`` times the parts of a finetuning of 20 rounds and 800 updates, for a model of random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from plain_synthesis import PlainLoop
from speed_step import EPS, PUBLISHED_STEPS, Batches, a_step, memory, random_model, rounds
from torch import nn
from train_vit_small import digits

from ns_easyrobust.data import Preprocessing, open_image_folder
from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation import describe_machine
from ns_easyrobust.models import load_model, required_image_size, token_shape
from ns_easyrobust.nullspace import NoiseConfig, Step, centred, measure, synthesize
from ns_easyrobust.report import colour, open_canvas
from ns_easyrobust.utils import write_text

STEPS = (("vit_micro_patch8_32", "64", "64"), ("vit_small_patch16_224", "1", "16"))  # arch, batch, steps timed
TURNS = (10, 20, 40, 80, 160)  # of the sphere solver; then to its end
MARK = "<!-- what benchmarks/speed.py synthesize has printed -->"


class Tee(io.StringIO):
    """Keeps what is printed, and prints it where it would have gone."""

    def __init__(self) -> None:
        super().__init__()
        self.out = sys.stdout

    def write(self, text: str) -> int:
        self.out.write(text)
        self.out.flush()
        return super().write(text)


@dataclass(frozen=True)
class Case:
    """A trained model, images (n, 3, H, W) to synthesize on and others to judge on."""

    name: str
    make: Callable[[], nn.Sequential]
    images: torch.Tensor
    held_out: torch.Tensor

    def batches(self, size: int, seed: int) -> Batches:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(self.images), generator=generator).split(size):
                if len(chosen) == size:
                    yield self.images[chosen]


class Point(NamedTuple):
    seconds: float
    norm: float
    mse_probability: float


def digits_case(device: torch.device) -> Case:
    """The demo's ViT, trained for 500 steps on 1297 digits; the other 500 judge."""
    (images, labels), (others, answers) = digits()
    images, others = (nn.functional.interpolate(part, size=32, mode="bilinear") for part in (images, others))
    model = random_model("vit_micro_patch8_32", torch.device("cpu"), 10).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    right = (model.eval()(others).argmax(1) == answers).float().mean()
    name = f"vit_micro_patch8_32 on digits ({100 * right:.1f}% of 500)"
    return Case(name, lambda: model.to(device), images.to(device), others.to(device))


def folder_case(arch: str, checkpoint: str, folder: str, args: argparse.Namespace, device: torch.device) -> Case:
    """A checkpoint, and up to ``--images`` of an image folder; a tenth of them, at most 500, judge."""
    classes = len([path for path in Path(folder).iterdir() if path.is_dir()])
    model = load_model(arch, checkpoint, num_classes=args.num_classes or classes).to(device).eval()
    size = (required_image_size(model) or (224, 224))[0]
    crop = args.crop_pct or (0.875 if size >= 224 else 1.0)
    found = open_image_folder(folder, Preprocessing(size, crop, "bicubic").transform())
    chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[: args.images].tolist()
    images = torch.stack([found[index][0] for index in chosen]).to(device)
    held = min(500, len(images) // 10)
    name = f"{arch} on {folder} ({Path(checkpoint).name}, {len(images) - held} images)"
    return Case(name, lambda: model, images[held:], images[:held])


class Run(NamedTuple):
    """A solver's noise, when it had it, after how many updates, whether it stopped by itself; what it saw."""

    noise: torch.Tensor
    seconds: float
    steps: int
    stopped: bool
    points: list[Point]


def published(model: nn.Sequential, case: Case, args: argparse.Namespace, seed: int) -> Run:
    """The plain loop to its own stop, its 3000 steps, or ``--seconds``."""
    torch.manual_seed(seed)
    loop, batches = PlainLoop(model, token_shape(model, case.images[:1]), eps=EPS), case.batches(args.batch_size, seed)
    points: list[Point] = []
    spent, steps, stopped = 0.0, 0, False
    while steps < PUBLISHED_STEPS and spent < args.seconds and not stopped:
        began = time.perf_counter()
        moved, stopped = loop.step(next(batches))
        spent += time.perf_counter() - began
        steps += not stopped
        points.append(Point(spent, float(centred(loop.noise.detach()).norm()), moved))
    for parameter in model.parameters():
        parameter.grad = None
    return Run(loop.noise.detach(), spent, steps, stopped, points)


def by_sphere(model: nn.Sequential, case: Case, args: argparse.Namespace, seed: int, steps: int) -> Run:
    """The sphere solver with ``steps`` turns at most."""
    points: list[Point] = []
    began = time.perf_counter()

    def note(step: Step) -> None:
        points.append(Point(time.perf_counter() - began, step.norm, step.mse_probability))

    config, generator = NoiseConfig(solver="sphere", max_steps=steps), torch.Generator().manual_seed(seed)
    noise = synthesize(model, case.batches(args.batch_size, seed), config, on_step=note, generator=generator)
    seconds = time.perf_counter() - began
    return Run(noise.value.to(case.images.device), seconds, noise.steps, noise.steps < steps, points)


def upper_bound(model: nn.Module, held_out: torch.Tensor, noise: torch.Tensor) -> float:
    return measure(model, held_out.split(100), noise).mse_probability_upper


def feasible_norm(model: nn.Module, held_out: torch.Tensor, noise: torch.Tensor) -> float:
    """Norm of the centred ``noise``, scaled to where its upper bound on ``held_out`` is just under EPS, to 2%."""
    value, factor, under, over = centred(noise), 1.0, 0.0, math.inf
    while over > 1.02 * under and under < 100:
        bound = upper_bound(model, held_out, value * factor)
        if bound < EPS:
            under = factor
        else:
            over = factor
        factor *= min(2.0, max(0.5, math.sqrt(0.99 * EPS / bound)))
        if not 1.005 * under < factor < 0.995 * over:
            factor = math.sqrt(under * over) if under and over < math.inf else factor * (1.01 if under else 0.99)
    return under * float(value.norm())


def race(case: Case, args: argparse.Namespace) -> dict[str, list[Point]]:
    """Both solvers on one model; prints what they reach and when, returns what was seen on the way."""
    model, curves = case.make(), {}
    print(f"\na noise, {case.name}, batches of {args.batch_size}, eps {EPS}, {len(case.held_out)} held out")
    print(f"{'seed':>4} {'':28} {'updates':>8} {'seconds':>9} {'of theirs':>9}", end=" ")
    print(f"{'norm':>7} {'bound':>7} {'feasible norm':>14}")
    for seed in range(args.seeds):

        def row(name: str, run: Run, whole: float, seed: int = seed) -> None:
            print(
                f"{seed:4} {name:28} {run.steps:8} {run.seconds:9.1f} {run.seconds / whole:9.3f} "
                f"{float(centred(run.noise).norm()):7.1f} {upper_bound(model, case.held_out, run.noise):7.3f} "
                f"{feasible_norm(model, case.held_out, run.noise):14.1f}",
                flush=True,
            )

        theirs = published(model, case, args, seed)
        whole = theirs.seconds if theirs.stopped else theirs.seconds / theirs.steps * PUBLISHED_STEPS
        row("published" if theirs.stopped else "published, not there yet", theirs, whole)
        if not theirs.stopped:
            print(f"     (its {PUBLISHED_STEPS} steps: {whole:.0f} s, extrapolated; this is what shares are of)")
        for turns in TURNS:
            ours = by_sphere(model, case, args, seed, turns)
            row(f"sphere, {turns} turns", ours, whole)
            if ours.seconds > args.seconds / 3:
                break
        ours = by_sphere(model, case, args, seed, max(turns, int(args.seconds * turns / ours.seconds)))
        row("sphere, to its end" if ours.stopped else f"sphere, about {args.seconds:.0f} s", ours, whole)
        gaussian = torch.randn(theirs.noise.shape, generator=torch.Generator().manual_seed(seed)).to(
            theirs.noise.device
        )
        row("random", Run(gaussian * (ours.noise.norm() / gaussian.norm()), 0.0, 0, True, []), whole)
        curves = curves or {"published loop": theirs.points, "sphere": ours.points}
    return curves


def picture(curves: dict[str, dict[str, list[Point]]], path: str) -> None:
    """mse_probability and norm against seconds, a column a model."""
    with open_canvas(path, 3.6 * len(curves), 5.0) as figure:
        panels = figure.subplots(2, len(curves), squeeze=False, sharex="col")
        for column, (case, lines) in enumerate(curves.items()):
            for row, key in enumerate(("mse_probability", "norm")):
                axes = panels[row][column]
                for number, (name, points) in enumerate(lines.items()):
                    seconds = [point.seconds for point in points]
                    axes.plot(seconds, [getattr(p, key) for p in points], color=colour(number), label=name, lw=0.8)
                axes.set_xscale("log")
                axes.set_yscale("log")
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_major_formatter(lambda value, _: f"{value:g}")
                    axis.set_minor_formatter(lambda value, _: "")
                axes.set_ylabel(key if row == 0 else "norm (centred)")
            panels[0][column].axhline(EPS, color="black", lw=0.8, ls="--")
            panels[0][column].set_title(case)
            panels[1][column].set_xlabel("seconds")
        panels[0][0].legend()
        figure.tight_layout()
    print(f"\nsaved {path}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="speed.py synthesize", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step", nargs=3, action="append", metavar=("ARCH", "BATCH", "STEPS"),
                        help=f"time that many steps (default: {' and '.join(map(' '.join, STEPS))})")  # fmt: skip
    parser.add_argument("--reuse", type=int, default=16, help="uses of a kept batch among them (default: 16)")
    parser.add_argument("--repeats", type=int, default=5, help="of those, in turns (default: 5)")
    parser.add_argument("--case", nargs=3, action="append", default=[], metavar=("ARCH", "CHECKPOINT", "FOLDER"),
                        help="a trained model, and images in one folder a class")  # fmt: skip
    parser.add_argument("--num-classes", type=int, help="of the cases' checkpoints (default: the folder's classes)")
    parser.add_argument("--images", type=int, default=5000, help="read of a case's folder (default: 5000)")
    parser.add_argument("--crop-pct", type=float, help="of a case's images (default: 0.875 from 224 pixels on, else 1)")
    parser.add_argument("-b", "--batch-size", type=int, default=64, help="of a noise (default: 64)")
    parser.add_argument("--seconds", type=float, default=100, help="for each solver and model (default: 100)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--rounds", metavar="ARCH", help="time a finetuning of 20 rounds with this model")
    parser.add_argument("--timed-steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=200, help="of the sphere solver a round, in --rounds")
    parser.add_argument("--docs", type=Path, help=f"a file to write what is printed into, between two lines {MARK}")
    parser.add_argument("--only-cases", action="store_true", help="neither steps nor the digits")
    args = parser.parse_args(argv)
    for path in [args.docs, *(word for case in args.case for word in case[1:])]:
        if path and not Path(path).exists():
            raise OptionError(f"{path}: expected a file or folder, found nothing. Check the path.")
    printed = Tee()
    with contextlib.redirect_stdout(printed):
        everything(args)
    if args.docs:
        before, _, after = args.docs.read_text(encoding="utf-8").split(MARK)
        write_text(args.docs, f"{before}{MARK}\n```\n{printed.getvalue().strip()}\n```\n{MARK}{after}")


def everything(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    print(describe_machine(args.device))
    for arch, batch, steps in [] if args.only_cases else args.step or STEPS:
        a_step(args, arch, int(batch), int(steps), device)
        memory(arch, int(batch), device)
    cases = [] if args.only_cases else [digits_case(device)]
    cases += (folder_case(*case, args, device) for case in args.case)
    curves = {case.name.split(" (")[0]: race(case, args) for case in cases}
    if args.plot:
        picture(curves, args.plot)
    if args.rounds:
        rounds(args, device)
