"""Which noise finetunes better: Algorithm 1's, the sphere's, or the controls', at equal updates and over seeds.

    python benchmarks/solver_study.py --output study [--seeds 0 1 2] [--docs docs/synthesis.md]

The demo's pretraining, finetuning and evaluation on scikit-learn's digits, once a seed and kind of noise, through the
commands ``train`` and ``benchmark``; a table of means and standard deviations over seeds, as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ns_easyrobust import cli
from ns_easyrobust.columns import column_key, columns_of
from ns_easyrobust.demo import EVALUATION, FINETUNE, IMAGES, MODEL, NOISE, PRETRAIN
from ns_easyrobust.digits import write_digits
from ns_easyrobust.files import write_text
from ns_easyrobust.records import Record, describe_machine, read_records

SPHERE = ["--ns-solver", "sphere", "--ns-interval", "40", "--ns-eps", "0.03", "--ns-max-steps", "200"]
KINDS: dict[str, Sequence[str]] = {
    "none": ("--aug", "none"),
    "random": ("--aug", "random", *NOISE),
    "permuted, paper": ("--aug", "permuted", *NOISE),
    "nullspace, paper": ("--aug", "nullspace", *NOISE),
    "permuted, sphere": ("--aug", "permuted", *SPHERE),
    "nullspace, sphere": ("--aug", "nullspace", *SPHERE),
}
MARK = "<!-- what benchmarks/solver_study.py has measured -->"


def run(*words: Any) -> None:
    if cli.main([str(word) for word in words]):
        sys.exit(f"failed: ns-easyrobust {words[0]}; its message stands above")


def one_seed(root: Path, data: Path, seed: int) -> None:
    """Pretrain, finetune each kind, evaluate; records of all seeds go into one file under labels of the kinds."""
    where = ["--data-dir", data, "-j", 0, "--seed", seed]
    folder = root / f"seed{seed}"
    run("train", *MODEL, *where, *IMAGES, *PRETRAIN, "--output", folder, "--experiment", "pretrained")
    start = folder / "pretrained" / "last.pth.tar"
    finetune = [*MODEL, *where, *IMAGES, *FINETUNE, "--initial-checkpoint", start, "--select", "last"]
    for kind, flags in KINDS.items():
        run("train", *flags, *finetune, "--val-interval", 6, "--output", folder, "--experiment", kind)
        run("benchmark", *MODEL, "--ckpt-path", folder / kind / "last.pth.tar", "--data-dir", data, *EVALUATION,
            "--records", folder / "results.jsonl", "--label", kind)  # fmt: skip


def spread(values: Sequence[float], digits: int = 1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(root: Path, seeds: Sequence[int]) -> str:
    """Means and standard deviations over seeds, a row a kind, a column a suite; below, what the noises were like."""
    records: list[Record] = [r for seed in seeds for r in read_records(root / f"seed{seed}" / "results.jsonl")]
    records = [record for record in records if record.unit == "%" and record.correct is not None]
    columns = columns_of(records)
    lines = ["| | " + " | ".join(column.title for column in columns) + " |", "|:--|" + "--:|" * len(columns)]
    for kind in KINDS:
        cells = [
            spread([r.value for r in records if r.label == kind and column_key(r) == column.key]) for column in columns
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", "| noise | norm | feasible rounds | cosine between rounds |", "|:--|--:|--:|--:|"]
    for kind in list(KINDS)[1:]:
        rounds = []
        for seed in seeds:
            with open(root / f"seed{seed}" / kind / "noise.csv", newline="", encoding="utf-8") as stream:
                rounds += list(csv.DictReader(stream))
        norms = [float(row["norm"]) for row in rounds]
        feasible = sum(row["converged"] == "True" for row in rounds)
        cosines = [abs(float(row["cosine"])) for row in rounds if row["cosine"]]
        lines.append(f"| {kind} | {spread(norms)} | {feasible} of {len(rounds)} | {spread(cosines, 2)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--docs", type=Path, help=f"a file to write the table into, between two lines {MARK}")
    parser.add_argument("--table-only", action="store_true", help="of an --output that is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table_only:
        data = write_digits(args.output / "digits")
        for seed in args.seeds:
            one_seed(args.output, data, seed)
    made = f"{describe_machine('cpu')}; seeds {' '.join(map(str, args.seeds))}; top-1 in percent, mean ± deviation.\n\n"
    made += table(args.output, args.seeds)
    print(made)
    if args.docs:
        before, _, after = args.docs.read_text(encoding="utf-8").split(MARK)
        write_text(args.docs, f"{before}{MARK}\n{made}\n{MARK}{after}")


if __name__ == "__main__":
    main()
