"""How fast the evaluation is beside EasyRobust's, and PatchFool beside a plain version of the published algorithm.

    python benchmarks/speed.py evaluate [--model vit_tiny_patch16_224 --size 224] [--tree DIR] [--repeats 3]

Each number is measured in a process of its own, ours and theirs in turns, so that the ratios stand
on a machine whose speed changes; medians are shown. Without ``--tree`` a generated tree in
EasyRobust's layout is used: two images a class, flat colours, and ImageNet-C thinned to 20 of
its classes. There a call's fixed cost (starting workers, waiting for the first batch) weighs more
than on ImageNet, 75 times over in ImageNet-C.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import easyrobust.benchmarks as host
import torch
from make_benchmark_tree import write_tree
from plain_patchfool import plain_patchfool
from timing import Work, in_turns
from torch import nn

from ns_easyrobust.attacks import PatchFoolConfig, patchfool
from ns_easyrobust.data import imagenet
from ns_easyrobust.evaluation import EvaluationPlan, Protocol, Recorder, describe_machine, run_suites
from ns_easyrobust.evaluation import easyrobust_api as evaluate
from ns_easyrobust.models import load_model

SUITES = {  # name of the function, folder
    "val": ("evaluate_imagenet_val", "imagenet-val"),
    "a": ("evaluate_imagenet_a", "imagenet-a"),
    "r": ("evaluate_imagenet_r", "imagenet-r"),
    "sketch": ("evaluate_imagenet_sketch", "imagenet-sketch"),
    "v2": ("evaluate_imagenet_v2", "imagenetv2"),
    "stylized": ("evaluate_stylized_imagenet", "imagenet-style"),
    "c": ("evaluate_imagenet_c", "imagenet-c"),
    "objectnet": ("evaluate_objectnet", "ObjectNet/images"),
}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_model(name, num_classes=1000, mean=(0.5,) * 3, std=(0.5,) * 3).eval()


def images_in(root: Path) -> int:
    return sum(1 for path in root.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))


def evaluations(args: argparse.Namespace, tree: Path) -> None:
    transform = Protocol("easyrobust", args.size).preprocessing("val").transform()
    print(f"{'suite':10} {'images':>7} {'EasyRobust':>12} {'ours':>12} {'ours/theirs':>12} {'peak memory':>20}")
    for suite, (function, folder) in SUITES.items():
        root = str(tree / folder)
        costs = in_turns(
            {
                "EasyRobust": lambda model, f=function, r=root: getattr(host, f)(model, r, args.batch_size, transform),
                "ours": lambda model, f=function, r=root: getattr(evaluate, f)(model, r, args.batch_size, transform),
            },
            lambda: make_model(args.model),
            args.repeats,
        )
        n, theirs, ours = images_in(tree / folder), costs["EasyRobust"], costs["ours"]
        print(
            f"{suite:10} {n:7} {n / theirs.seconds:7.0f} im/s {n / ours.seconds:7.0f} im/s "
            f"{ours.seconds / theirs.seconds:12.2f} {theirs.memory:8.0f}, {ours.memory:5.0f} MiB",
            flush=True,
        )

    def separately(model: nn.Module) -> None:
        for function, folder in SUITES.values():
            getattr(host, function)(model, str(tree / folder), args.batch_size, transform)
        evaluate.evaluate_imagenet_fgsm(model, tree / "imagenet-val", args.batch_size, transform)

    def together(model: nn.Module) -> None:
        with tempfile.TemporaryDirectory() as where:
            recorder = Recorder(Path(where) / "r.jsonl", {"label": "m", "model": "m", "seed": 0})
            plan = EvaluationPlan(
                tree, [*SUITES, "fgsm"], Protocol("easyrobust", args.size), batch_size=args.batch_size
            )
            run_suites(model, plan, records=recorder, workers=4)

    costs = in_turns({"separately": separately, "together": together}, lambda: make_model(args.model), args.repeats)
    ratio = costs["together"].seconds / costs["separately"].seconds
    print(
        f"\nthe eight suites and FGSM: separate calls {costs['separately'].seconds:.1f} s, one of ours "
        f"{costs['together'].seconds:.1f} s with records: {ratio:.2f} of the time; "
        f"{costs['separately'].memory:.0f} and {costs['together'].memory:.0f} MiB"
    )


def patch_fools(args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    side = 224
    pixels = torch.rand(args.patchfool_images, 3, side, side, generator=generator)
    labels = torch.randint(1000, (args.patchfool_images,), generator=generator)
    config = PatchFoolConfig(steps=args.patchfool_steps)
    works: dict[str, Work] = {
        "plain": lambda model: plain_patchfool(model, pixels, labels, config, seeds=range(len(pixels))),
        "ours": lambda model: patchfool(model, pixels, labels, config, seeds=range(len(pixels))),
    }
    costs = in_turns(works, lambda: make_model(args.patchfool_model), args.repeats)
    plain, ours = (costs[name].seconds / len(pixels) * 250 / args.patchfool_steps for name in works)
    print(
        f"\nPatchFool ({args.patchfool_model}, attention, official), {len(pixels)} images, "
        f"{args.patchfool_steps} steps, scaled to 250: plain {plain:.1f} s an image, "
        f"ours {ours:.1f} s: {ours / plain:.2f} of the time; "
        f"{costs['plain'].memory:.0f} and {costs['ours'].memory:.0f} MiB"
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="speed.py evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_micro_patch8_32", help="random weights (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="its image side")
    parser.add_argument("--tree", help="EasyRobust's benchmark folder (default: a generated one)")
    parser.add_argument("--classes", type=int, default=20, help="of the generated ImageNet-C")
    parser.add_argument("-b", "--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patchfool-model", default="deit_tiny_patch16_224", help="random weights, 224 pixels")
    parser.add_argument("--patchfool-images", type=int, default=8)
    parser.add_argument("--patchfool-steps", type=int, default=5)
    args = parser.parse_args(argv)
    print(f"{describe_machine('cpu')}; {args.model}, batches of {args.batch_size}, medians of {args.repeats}\n")
    with tempfile.TemporaryDirectory() as where:
        tree = Path(args.tree) if args.tree else Path(where) / "tree"
        if not args.tree:
            write_tree(tree, size=args.size, per_class=2, classes=args.classes)
        imagenet.wnids(), imagenet.objectnet_classes()  # neither side pays for imports
        evaluations(args, tree)
        patch_fools(args)
