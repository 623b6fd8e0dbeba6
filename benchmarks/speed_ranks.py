"""How synthesis and training scale over processes, with the same total batch on each number of them.

    python benchmarks/speed.py ranks [--ranks 1 2 4] [--model vit_small_patch16_224 --batch-size 512 --device cuda]

Each number of ranks is a real torchrun (gloo on CPU, nccl on GPUs), measured in turns; every process has one
thread, so on a machine with as many cores as ranks the ideal is their number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ns_easyrobust.evaluation import describe_machine
from ns_easyrobust.models import load_model, required_image_size
from ns_easyrobust.nullspace import NoiseConfig
from ns_easyrobust.training import NullspaceAugmentation
from ns_easyrobust.utils import process_group, rank, world_size


def work(args: argparse.Namespace, notes: Path) -> None:
    """One rank: seconds of a synthesis step and of an update with its companion loss, noted by rank 0."""
    torch.set_num_threads(1)
    with process_group(torch.device(args.device)) as device:
        torch.manual_seed(0)
        model: nn.Module = load_model(args.model, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3).to(device)
        share = args.batch_size // world_size()
        images = torch.rand(share, 3, *(required_image_size(model) or (224, 224)), device=device)
        labels = torch.randint(10, (share,), device=device)
        if world_size() > 1:
            model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        config = NoiseConfig(max_steps=args.steps, eps=1e-30, solver=args.solver, patience=0)
        augmentation = NullspaceAugmentation(model, [images], config, interval=10**9)

        def update() -> None:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            (loss + augmentation.loss(images, labels, nn.functional.cross_entropy)).backward()
            optimizer.step()

        def seconds(action, times: int) -> float:
            began = time.perf_counter()
            for _ in range(times):
                action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - began

        update()  # with a first synthesis
        found = {
            "synthesis": seconds(augmentation.refresh, 1) / args.steps,
            "update": seconds(update, args.steps) / args.steps,
        }
        if rank() == 0:
            notes.write_text(json.dumps(found))


def measured(ranks: int, argv: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as where:
        notes = Path(where) / "seconds.json"
        program = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
        words = [str(Path(__file__).with_name("speed.py")), "ranks", *argv, "--notes", str(notes)]
        done = subprocess.run(
            [*program, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"torchrun with {ranks} ranks failed:\n{done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(notes.read_text())
        return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="speed.py ranks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="vit_micro_patch4_32", help="random weights (default: %(default)s)")
    parser.add_argument("-b", "--batch-size", type=int, default=32, help="over all ranks (default: 32)")
    parser.add_argument("--solver", default="paper")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--notes", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.notes:
        work(args, Path(args.notes))
        return
    found: dict[int, list[dict[str, float]]] = {ranks: [] for ranks in args.ranks}
    for _ in range(args.repeats):
        for ranks in args.ranks:
            found[ranks].append(measured(ranks, argv))
    of = f"{args.model}, {args.batch_size} images a step in all, medians of {args.repeats}"
    print(f"{describe_machine(args.device)}; {of}\n")
    print(f"{'ranks':>5} {'synthesis step':>15} {'speed-up':>9} {'update':>12} {'speed-up':>9}")
    first = {}
    for ranks, costs in found.items():
        now = {key: statistics.median(cost[key] for cost in costs) for key in costs[0]}
        first = first or now
        print(
            f"{ranks:5} {1000 * now['synthesis']:12.1f} ms {first['synthesis'] / now['synthesis']:9.2f} "
            f"{1000 * now['update']:9.1f} ms {first['update'] / now['update']:9.2f}"
        )
