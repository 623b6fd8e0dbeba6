"""Which noise finetunes better: Algorithm 1's, the sphere's, or the controls', at equal updates and over seeds.

    python benchmarks/solver_study.py --output study                         # scikit-learn's digits, as the demo
    python benchmarks/solver_study.py --output study --cifar CIFAR10_FOLDER  # train/ and val/, a folder a class

Pretraining, finetuning and evaluation through the commands ``train`` and ``benchmark``, once a seed and kind of noise;
a table of means and standard deviations over seeds, as Markdown. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cifar_tree import write_tree

from ns_easyrobust.cli import demo
from ns_easyrobust.cli import main as cli
from ns_easyrobust.data import write_digits
from ns_easyrobust.evaluation import Record, describe_machine, latest, read_records
from ns_easyrobust.report import column_key, columns_of
from ns_easyrobust.utils import write_text

COMMON = ("--ns-interval", "40", "--ns-eps", "0.03")


@dataclass(frozen=True)
class Study:
    """Flags of the commands; one pretraining a seed, or one for all."""

    name: str
    images: Sequence[str]
    pretrain: Sequence[str]
    finetune: Sequence[str]
    evaluation: Sequence[str]
    paper: Sequence[str]
    sphere: Sequence[str]
    one_start: bool

    @property
    def kinds(self) -> dict[str, Sequence[str]]:
        short = ("--ns-max-steps", "20")
        return {
            "none": ("--aug", "none"),
            "random": ("--aug", "random", *self.paper),
            "permuted, paper": ("--aug", "permuted", *self.paper),
            "nullspace, paper": ("--aug", "nullspace", *self.paper),
            "permuted, sphere": ("--aug", "permuted", *self.sphere),
            "nullspace, sphere": ("--aug", "nullspace", *self.sphere),
            "nullspace, sphere, warm, 20 turns": ("--aug", "nullspace", *self.sphere, *short, "--ns-warm-start"),
        }


DIGITS = Study(
    name="digits",
    images=demo.IMAGES,
    pretrain=demo.PRETRAIN,
    finetune=[*demo.FINETUNE, "--val-interval", "6"],
    evaluation=demo.EVALUATION,
    paper=demo.NOISE,
    sphere=[*COMMON, "--ns-solver", "sphere", "--ns-max-steps", "200"],
    one_start=False,
)
# The paper's 20 rounds and 800 updates, with its noise; a patch of PatchFool is a sixteenth of an image here too.
CIFAR = Study(
    name="cifar",
    images=[],
    pretrain=shlex.split("--epochs 15 --batch-size 128 --lr 2e-3 --min-lr 1e-5 --warmup-epochs 1 --val-interval 5"),
    finetune=shlex.split("--epochs 20 --epoch-steps 40 --batch-size 64 --lr 1e-4 --min-lr 1e-5 --val-interval 20"),
    evaluation=shlex.split(
        "--input-size 32 --crop-pct 1 -b 100 -j 0 --suite val fgsm pgd cw patchfool c --epsilon 1/255 2/255 "
        "--pgd-epsilon 1/255 --cw-radius 0.25 --patchfool-layer 1 --patchfool-loss ce --patchfool-norm linf "
        "--patchfool-epsilon 16/255 --patchfool-steps 50 "
        "--subset fgsm=random:2000 pgd=random:2000 cw=random:1000 patchfool=random:1000"
    ),
    paper=[*COMMON, "--ns-max-steps", "3000"],
    sphere=[*COMMON, "--ns-solver", "sphere", "--ns-max-steps", "100"],
    one_start=True,
)


def run(*words: Any) -> None:
    if cli.main([str(word) for word in words]):
        sys.exit(f"failed: ns-easyrobust {words[0]}; its message stands above")


def one_seed(study: Study, root: Path, data: Path, seed: int) -> None:
    """Pretrain, finetune each kind, evaluate; records of all kinds go into one file under their names."""
    train = ["train", *demo.MODEL, "--data-dir", data, "-j", 0, *study.images]
    folder, first = root / f"seed{seed}", root / f"seed{0 if study.one_start else seed}"
    start = first / "pretrained" / "last.pth.tar"
    pretrain = ["--seed", 0 if study.one_start else seed, *study.pretrain, "--output", first]
    run(*train, *pretrain, "--experiment", "pretrained", "--resume", "auto")  # does nothing where it has ended
    finetune = [*train, "--seed", seed, *study.finetune, "--initial-checkpoint", start, "--select", "last"]
    for kind, flags in study.kinds.items():
        if not (folder / kind / "seconds").exists():
            began = time.perf_counter()
            shutil.rmtree(folder / kind, ignore_errors=True)  # of a run that was interrupted: its time is measured
            run(*finetune, *flags, "--output", folder, "--experiment", kind)
            write_text(folder / kind / "seconds", f"{time.perf_counter() - began:.1f}\n")
        run("benchmark", *demo.MODEL, "--ckpt-path", folder / kind / "last.pth.tar", "--data-dir", data,
            *study.evaluation, "--seed", seed, "--records", folder / "results.jsonl", "--label", kind)  # fmt: skip


def spread(values: Sequence[float], digits: int = 1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def rounds_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "noise.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def table(study: Study, root: Path, seeds: Sequence[int]) -> str:
    """Means and standard deviations over seeds, a row a kind, a column a suite; below, what the noises were like."""
    records: list[Record] = [r for seed in seeds for r in latest(read_records(root / f"seed{seed}" / "results.jsonl"))]
    records = [record for record in records if record.unit == "%" and record.correct is not None]
    columns = columns_of(records)
    titles = [column.title.replace(" top1", "").replace("corruption=", "") for column in columns]
    lines = ["| | " + " | ".join(titles) + " |", "|:--|" + "--:|" * len(columns)]
    for kind in study.kinds:
        cells = [
            spread([r.value for r in records if r.label == kind and column_key(r) == column.key]) for column in columns
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", "| noise | norm | feasible rounds | cosine between rounds | steps a round | seconds of the run |"]
    lines += ["|:--|--:|--:|--:|--:|--:|"]
    for kind in study.kinds:
        folders = [root / f"seed{seed}" / kind for seed in seeds]
        seconds = spread([float((folder / "seconds").read_text()) for folder in folders], 0)
        if kind == "none":
            lines.append(f"| none | | | | | {seconds} |")
            continue
        rounds = [row for folder in folders for row in rounds_of(folder)]
        feasible = sum(row["converged"] == "True" for row in rounds)
        cosines = spread([abs(float(row["cosine"])) for row in rounds if row["cosine"]], 2)
        norms = spread([float(row["norm"]) for row in rounds])
        steps = spread([float(row["synthesis_steps"]) for row in rounds], 0)
        lines.append(f"| {kind} | {norms} | {feasible} of {len(rounds)} | {cosines} | {steps} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="a folder, which an earlier run may have begun")
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="CIFAR-10 instead of the digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--docs", type=Path, help="a file to write the table into, between the two lines of its mark")
    parser.add_argument("--table-only", action="store_true", help="of an --output that is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = CIFAR if args.cifar else DIGITS
    if not args.table_only:
        data = args.output / "data"
        if not data.exists():
            unfinished = args.output / "data.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            if args.cifar:
                write_tree(args.cifar, unfinished)
            else:
                write_digits(unfinished)
            unfinished.rename(data)
        for seed in args.seeds:
            one_seed(study, args.output, data, seed)
    made = f"{describe_machine('cpu')}; seeds {' '.join(map(str, args.seeds))}; top-1 in percent, mean ± deviation.\n\n"
    made += table(study, args.output, args.seeds)
    print(made)
    if args.docs:
        mark = f"<!-- what benchmarks/solver_study.py has measured: {study.name} -->"
        before, _, after = args.docs.read_text(encoding="utf-8").split(mark)
        write_text(args.docs, f"{before}{mark}\n{made}\n{mark}{after}")


if __name__ == "__main__":
    main()
