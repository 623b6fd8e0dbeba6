"""The verb ``demo``: the whole workflow on real digits, with the same commands as on ImageNet.

A small ViT is pretrained, then finetuned from that one checkpoint in four ways with the same
budget, and each model is evaluated on attacked and corrupted images. Every command is printed before it runs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OutputError, TrainingError
from ..utils import FileLock, default_workers, file_or_folder, int_from, os_errors_as_output_errors
from . import main as cli
from .interrupts import Interrupted, Terminated

MODEL = ["--model", "vit_micro_patch8_32", "--num-classes", "10"]
SEED = ["--seed", "0"]
# Digits have a writing direction and no colour: no flips, no colour jitter.
IMAGES = ["--scale", "0.7", "1", "--hflip", "0", "--color-jitter", "0", "--train-interpolation", "bilinear"]
PRETRAIN = ["--epochs", "30", "--batch-size", "64", "--lr", "1e-3", "--min-lr", "1e-5", "--val-interval", "10"]
# App. C: A = 3, lr 0.1, eps 0.03, 40 training steps a round; here 6 rounds, not 20, each of <= 1000 synthesis steps.
FINETUNE = ["--epochs", "6", "--epoch-steps", "40", "--batch-size", "64", "--lr", "1e-4", "--min-lr", "1e-5"]
NOISE = ["--ns-interval", "40", "--ns-limit", "3", "--ns-lr", "0.1", "--ns-eps", "0.03", "--ns-max-steps", "1000"]
EVALUATION = ["--input-size", "32", "--crop-pct", "1", "-b", "100", "-j", "0", *SEED]
EVALUATION += ["--suite", "val", "patchfool", "cw", "fgsm", "c", "--epsilon", "2/255", "8/255", "--cw-radius", "0.5"]
# A patch is 1/16 of a digit: unbounded, it would fool every model. Three blocks are too few for the attention loss.
EVALUATION += ["--patchfool-layer", "1", "--patchfool-loss", "ce", "--patchfool-norm", "linf"]
EVALUATION += ["--patchfool-epsilon", "48/255", "--patchfool-steps", "50", "--subset", "patchfool=random:200"]
KINDS = ("none", "random", "permuted", "nullspace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the demo: its output folder and its data loaders."""
    parser.add_argument(
        "--output",
        type=file_or_folder,
        metavar="DIR",
        help="a new folder (default: output/demo, output/demo-2, ...)",
    )
    parser.add_argument(
        "-j", "--workers", type=int_from(0, 1024), default=default_workers(2), metavar="N",
        help="data loaders (default: 2, or 1 on one core)",
    )  # fmt: skip


def _command(verb: str, *flags: Any) -> None:
    """Print ``ns-easyrobust verb flags`` and run it in this process."""
    words = [verb, *map(str, flags)]
    print(f"\n$ ns-easyrobust {shlex.join(words)}", flush=True)
    code = cli.main(words)
    for signalled in (Interrupted, Terminated):
        if code == signalled.exit_code:
            raise signalled
    if code != 0:
        raise TrainingError(f"the demo's command {verb!r} failed: its message is above.")


def _history(run: Path) -> list[dict[str, Any]]:
    """Read the rounds in a run's ``noise.csv``, with the types that :func:`figures.noise_history` takes."""
    truth = {"True": True, "False": False, "": None}
    with open(run / "noise.csv", newline="", encoding="utf-8") as stream:
        return [
            {
                "step": int(row["step"]),
                "norm": float(row["norm"]),
                "mse_probability": float(row["mse_probability"]),
                "synthesis_steps": int(row["synthesis_steps"]),
                "stopped": truth[row["stopped"]],
                "converged": truth[row["converged"]],
            }
            for row in csv.DictReader(stream)
        ]


def _print_rounds(name: str, history: list[dict[str, Any]]) -> None:
    print(f"\nnoises of --aug {name}: stopped = under eps on its minibatch, converged = on held-out images too (95%)")
    if name == "permuted":
        print("(steps are those of the nullspace noise that was then permuted)")
    print(f"{'round':>6} {'steps':>6} {'stopped':>8} {'converged':>10} {'norm':>8} {'mse_probability':>16}")
    for number, entry in enumerate(history, start=1):
        words = {True: "yes", False: "no", None: "-"}
        print(
            f"{number:6} {entry['synthesis_steps']:6} {words[entry['stopped']]:>8} {words[entry['converged']]:>10} "
            f"{entry['norm']:8.2f} {entry['mse_probability']:16.4f}"
        )


def _exact_noise_sheet(checkpoint: Path, images_dir: Path, path: Path) -> Path:
    """Draw images as they are, with noise from the patch embedding's nullspace, and with that noise permuted."""
    import torch

    from ..data import open_image_folder
    from ..models import load_model
    from ..nullspace import valid_nullspace_noise
    from ..report import image_sheet

    model = load_model(MODEL[1], checkpoint, num_classes=10).eval()
    folder = open_image_folder(images_dir)
    chosen = [folder.targets.index(label) for label in range(0, 10, 2)]
    pixels = [torch.frombuffer(bytearray(folder[i][0].tobytes()), dtype=torch.uint8) for i in chosen]
    images = torch.stack(pixels).view(-1, 32, 32, 3).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    noise = valid_nullspace_noise(model, images, generator=generator)
    order = torch.randperm(noise[0].numel(), generator=generator)
    permuted = noise.flatten(1)[:, order].view_as(noise)
    with torch.no_grad():
        clean = model(images)
        noisy, control = images + noise, (images + permuted).clamp(0, 1)
        changes = [(model(inputs) - clean).abs().amax(1).tolist() for inputs in (noisy, control)]
    predictions = [f"predicted {digit}" for digit in clean.argmax(1).tolist()]
    rows = [
        (images, "images", predictions),
        (noisy, "with nullspace noise", [f"logits change by {change:.1e}" for change in changes[0]]),
        (control, "with that noise permuted", [f"logits change by {change:.2g}" for change in changes[1]]),
    ]
    return image_sheet(rows, path, "Noise that the patch embedding maps to zero")


@contextmanager
def _own_folder(output: str | None) -> Iterator[Path]:
    """The folder ``output``, new or empty, or a new one; no other demo takes it while the body runs.

    Raises:
        OutputError: the folder holds something, another demo works in it, or it cannot be made.
    """
    root = Path(output) if output else _new_folder(Path("output/demo"))
    with os_errors_as_output_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock", "this demo") as lock:
        if any(path != lock.path for path in root.iterdir()):
            raise OutputError(f"{root} exists: expected a new or empty folder. Pass another --output, or move it away.")
        yield root


def _new_folder(path: Path) -> Path:
    """Make ``path``, or the first of path-2, path-3, ... that does not exist."""
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))):
            try:
                folder.mkdir()
            except FileExistsError:  # from before, or made by another demo in this moment
                continue
            return folder
    raise AssertionError("numbers have no end")


def run(args: argparse.Namespace) -> None:
    """Pretrain, finetune in four ways, evaluate, and write the report."""
    with _own_folder(args.output) as root:
        _run_in(root, args.workers)


def _run_in(root: Path, workers: int) -> None:
    import torch

    from ..data import write_digits
    from ..report import noise_history

    # A ViT this small runs no faster on several threads, which would compete with the data loaders.
    torch.set_num_threads(1)
    started = time.monotonic()
    print(f"writing scikit-learn's 1797 handwritten digits to {root / 'digits'}")
    data, results = write_digits(root / "digits"), root / "results.jsonl"
    data_flags = ["--data-dir", data, "-j", workers, *SEED]
    _command("train", *MODEL, *data_flags, *IMAGES, *PRETRAIN, "--output", root, "--experiment", "pretrained")
    pretrained = root / "pretrained" / "last.pth.tar"
    _command("nullspace", pretrained)
    _command("noise", *MODEL, "--ckpt-path", pretrained, "--data-dir", data / "train", "--input-size", 32,
             "--crop-pct", 1, *NOISE[2:], "-b", 64, "-j", 0, *SEED, "--output", root / "noise.pt")  # fmt: skip
    finetune = [*MODEL, *data_flags, *IMAGES, *FINETUNE, "--initial-checkpoint", pretrained, "--select", "last"]
    finetune += ["--val-interval", 6, "--output", root]
    for kind in KINDS:
        noise = NOISE if kind != "none" else []
        _command("train", "--aug", kind, *noise, *finetune, "--experiment", kind)
    for name in ("pretrained", *KINDS):
        label = name if name == "pretrained" else f"--aug {name}"
        _command("benchmark", *MODEL, "--ckpt-path", root / name / "last.pth.tar", "--data-dir", data, *EVALUATION,
                 "--records", results, "--label", label)  # fmt: skip
    histories = {kind: _history(root / kind) for kind in KINDS if kind != "none"}
    for kind, history in histories.items():
        _print_rounds(kind, history)
    pictures = [
        noise_history(histories, root / "noise.png", eps=float(NOISE[NOISE.index("--ns-eps") + 1])),
        _exact_noise_sheet(root / "nullspace" / "last.pth.tar", data / "val", root / "unseen.png"),
    ]
    _command("report", results, "--baseline", "--aug none", "--output", root)
    print(f"\npictures: {', '.join(map(str, pictures))}")
    print(f"done in {time.monotonic() - started:.0f} s")
