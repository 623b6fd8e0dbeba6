"""Timed parts of a synthesis with random weights: a step, its memory, a finetuning of twenty rounds."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from plain_synthesis import PlainLoop
from timing import in_turns
from torch import nn

from ns_easyrobust.models import load_model, required_image_size, token_shape
from ns_easyrobust.nullspace import NoiseConfig, synthesize

EPS, PUBLISHED_STEPS = 0.03, 3000
Batches = Iterator[torch.Tensor]


def random_model(arch: str, device: torch.device, classes: int = 1000) -> nn.Sequential:
    torch.manual_seed(0)
    return load_model(arch, num_classes=classes, mean=(0.5,) * 3, std=(0.5,) * 3).to(device).eval()


def random_images(model: nn.Sequential, batch: int, count: int, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = required_image_size(model) or (224, 224)
    return [torch.rand(batch, 3, *side, generator=generator).to(device) for _ in range(count)]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def a_step(args: argparse.Namespace, arch: str, batch: int, steps: int, device: torch.device) -> None:
    """Medians of the seconds of a step, without the first one of each process, in turns."""
    kept = max(1, steps // args.reuse)

    def timed(work: Callable[[nn.Sequential, Batches], object]) -> Callable[[nn.Module], object]:
        def run(model: Any) -> float:
            images = random_images(model, batch, min(steps, 8), device)
            work(model, iter(images[:1]))  # what only the first step pays
            wait(device)
            began = time.perf_counter()
            work(model, (images[i % len(images)] for i in range(steps)))
            wait(device)
            return time.perf_counter() - began

        return run

    def plain(model: nn.Sequential, batches: Batches) -> None:
        loop = PlainLoop(
            model, token_shape(model, torch.zeros(1, 3, *(required_image_size(model) or (224, 224))).to(device))
        )
        loop.eps = 0.0
        for images in batches:
            loop.step(images)

    def ours(**options: Any) -> Callable[[nn.Sequential, Batches], object]:
        def work(model: nn.Sequential, batches: Batches) -> None:
            given = list(batches)
            config = NoiseConfig(max_steps=len(given) if len(given) == 1 else steps, eps=1e-30, **options)
            synthesize(model, given, config)

        return work

    works = {"plain": timed(plain), "fresh": timed(ours()), "kept": timed(ours(pool=kept))}
    names = {
        "plain": "published loop, plainly",
        "fresh": "ours, a fresh batch each step",
        "kept": f"ours, clean logits kept, each used {steps / kept:g} times",
    }
    if device.type == "cuda":
        works["bf16"] = timed(ours(pool=kept, autocast="bfloat16"))
        names["bf16"] = names["kept"] + ", bfloat16"
    if device.type == "cuda":  # no forks beside a CUDA context
        model = random_model(arch, device)
        runs = [{name: work(model) for name, work in works.items()} for _ in range(args.repeats)]
        seconds = {name: statistics.median(run[name] for run in runs) for name in works}
    else:
        found = in_turns(works, lambda: random_model(arch, device), args.repeats)
        seconds = {name: statistics.median(cost.result) for name, cost in found.items()}
    print(f"\na step, {arch}, batches of {batch}, {steps} steps, medians of {args.repeats}")
    for name, value in seconds.items():
        print(f"  {names[name]:58} {1000 * value / steps:9.1f} ms  {value / seconds['plain']:5.2f}")


def memory(arch: str, batch: int, device: torch.device) -> None:
    """Peak memory of a synthesis with a pool of 32 batches, and of training steps at the same batch."""

    def synthesis(model: Any) -> None:
        (images,) = random_images(model, batch, 1, device)
        batches = (images.clone() for _ in range(40))
        synthesize(model, batches, NoiseConfig(max_steps=34, eps=1e-30, pool=32))

    def training(model: Any) -> None:
        (images,) = random_images(model, batch, 1, device)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.zeros(batch, dtype=torch.long, device=device)).backward()
            optimizer.step()

    works = {"synthesis": synthesis, "training": training}
    if device.type == "cuda":
        peaks = {}
        for name, work in works.items():
            model = random_model(arch, device)
            torch.cuda.reset_peak_memory_stats(device)
            work(model)
            peaks[name] = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peaks = {name: cost.memory for name, cost in in_turns(works, lambda: random_model(arch, device), 1).items()}
    print(
        f"  peak memory: synthesis with a pool of 32 {peaks['synthesis']:.0f} MiB, training {peaks['training']:.0f} MiB"
        + (" (the whole process's)" if device.type == "cpu" else "")
    )


def rounds(args: argparse.Namespace, device: torch.device) -> None:
    """20 rounds and 800 updates, put together from timed steps of a model with random weights."""
    model, batch = random_model(args.rounds, device), args.batch_size
    images = random_images(model, batch, 4, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def update() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(images[0]).square().mean() + model(images[1]).square().mean()  # clean and noisy
        loss.backward()
        optimizer.step()

    def seconds(work: Callable[[], object], times: int) -> float:
        work()
        wait(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait(device)
        return (time.perf_counter() - began) / times

    training = 800 * seconds(update, args.timed_steps // 10 or 1)
    precision = "bfloat16" if device.type == "cuda" else "off"

    def published_step() -> None:
        loop.step(images[0])

    loop = PlainLoop(model, token_shape(model, images[0]), eps=0.0)
    published = 20 * PUBLISHED_STEPS * seconds(published_step, args.timed_steps)
    costs = {
        f"published loop, {PUBLISHED_STEPS} steps a round, float32, extrapolated from {args.timed_steps}": published
    }
    if precision != "off":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            half = 20 * PUBLISHED_STEPS * seconds(published_step, args.timed_steps)
        costs[f"published loop, autocast {precision}, extrapolated likewise"] = half
    steps = max(args.timed_steps, 64)  # 32 of them fill the pool
    paper = NoiseConfig(max_steps=steps, eps=1e-30, pool=32, autocast=precision)
    fast_step = 20 * PUBLISHED_STEPS * seconds(lambda: synthesize(model, images, paper), 1) / steps
    # Random weights hardly react: at the usual eps the search would soon end at its largest norm.
    fast = NoiseConfig(solver="sphere", eps=1e-6, max_steps=args.turns, patience=0, autocast=precision)
    sphere = 20 * seconds(lambda: synthesize(model, images, fast), 1)
    costs[f"the same solver by our step, autocast {precision}, pool of 32, extrapolated from {steps}"] = fast_step
    costs[f"sphere, {args.turns} turns a round, autocast {precision}, pool of 32"] = sphere
    print(f"\n20 rounds and 800 updates, {args.rounds}, batches of {batch}: training alone {training / 60:.1f} min")
    for name, cost in costs.items():
        print(f"  {name:85} {(training + cost) / 60:8.1f} min")
