"""Train a ViT-S/16 for images of 224 pixels on scikit-learn's digits, in about half an hour on one core.

    python benchmarks/train_vit_small.py vit_small.pth.tar [--small-steps 500] [--large-steps 60]

A case for ``speed.py synthesize`` where no ImageNet weights are at hand. From scratch at 224 pixels it would take
hours: so first images of 64 pixels (16 tokens), then the position embedding is resized and the model goes on at 224.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import resize_pos_embed
from torch import nn

from ns_easyrobust.utils import write_atomically

ARCH, HELD_OUT = "vit_small_patch16_224", 500
Data = tuple[torch.Tensor, torch.Tensor]


def digits() -> tuple[Data, Data]:
    """Images (n, 3, 8, 8) in [0, 1] with labels, to train on and to judge on; the split that ``speed.py`` has too."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)[order]
    labels = torch.tensor(found.target)[order]
    return (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])


def at(images: torch.Tensor, side: int) -> torch.Tensor:
    """As the model's input, which is normalised with mean and std 0.5."""
    return nn.functional.interpolate(images, size=side, mode="bilinear") * 2 - 1


def batches(data: Data, size: int) -> Iterator[Data]:
    generator = torch.Generator().manual_seed(0)
    while True:
        for chosen in torch.randperm(len(data[0]), generator=generator).split(size):
            yield data[0][chosen], data[1][chosen]


def train(model: nn.Module, data: Data, side: int, steps: int, batch: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    for step, (images, labels) in zip(range(1, steps + 1), batches(data, batch), strict=False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(at(images, side)), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"{side} pixels, step {step} of {steps}: loss {float(loss):.3f}", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, side: int) -> float:
    model.eval()
    right = sum(
        int((model(at(x, side)).argmax(1) == y).sum()) for x, y in zip(*(d.split(50) for d in data), strict=True)
    )
    model.train()
    return 100 * right / len(data[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--small-steps", type=int, default=500)
    parser.add_argument("--large-steps", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    training, judging = digits()
    small = timm.create_model(ARCH, num_classes=10, img_size=64)
    train(small, training, 64, args.small_steps, 64, 5e-4)
    print(f"64 pixels: {accuracy(small, judging, 64):.1f}% of {HELD_OUT}", flush=True)
    large = timm.create_model(ARCH, num_classes=10)
    weights = small.state_dict()
    weights["pos_embed"] = resize_pos_embed(weights["pos_embed"], large.pos_embed)
    large.load_state_dict(weights)
    print(f"224 pixels, the same weights: {accuracy(large, judging, 224):.1f}% of {HELD_OUT}", flush=True)
    train(large, training, 224, args.large_steps, 16, 1e-4)
    print(f"224 pixels: {accuracy(large, judging, 224):.1f}% of {HELD_OUT}")
    write_atomically(args.path, lambda temporary: torch.save({"state_dict": large.state_dict()}, temporary))


if __name__ == "__main__":
    main()
