"""The study that confirms or refutes the best variants of another: on other images, with other seeds.

python benchmarks/confirm_study.py VARIANTS.yaml VARIANTS_FOLDER CONFIRM.yaml
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import yaml

KEPT = ("none", "random", "permuted", "nullspace")
CHOSEN = 2
FIRST_SEED, SEEDS = 20, 8
QUESTION = "Do the two best of {name} beat plain finetuning, random noise and norm-matched noise, elsewhere too?"
PROTOCOL = """\
The rule was written before the first run: of the variants in {name}, the two of the highest mean over seeds of its
primary endpoint. They are judged here by the same measure, on the images of the part "confirm", which nothing else has
looked at, with {seeds} fresh seeds, none added afterwards. A variant is recommended if it is better than none, random
and permuted after Holm's correction over all pairs of this study."""


def chosen_variants(folder: Path) -> list[str]:
    """The variants of a finished study with the highest values of its primary endpoint, the best first."""
    with open(folder / "primary.csv", newline="") as lines:
        values = {row["method"]: float(row["method_value"]) for row in csv.DictReader(lines) if row["method_value"]}
    variants = [method for method in values if method not in KEPT]
    if len(variants) < CHOSEN:
        raise SystemExit(f"{folder}: expected {CHOSEN} variants at least that were run, found {len(variants)}")
    return sorted(variants, key=lambda method: -values[method])[:CHOSEN]


def confirming(study: dict[str, object], name: str, chosen: list[str], seeds: int = SEEDS) -> dict[str, object]:
    """``study`` with the chosen methods beside the references, other seeds, and the images of the part confirm.

    Args:
        name: of the file that ``study`` was read from.
        seeds: how many, from 20 on.
    """
    methods, benchmark = study["methods"], study["benchmark"]
    assert isinstance(methods, dict)
    assert isinstance(benchmark, dict)
    return study | {
        "question": QUESTION.format(name=name),
        "protocol": PROTOCOL.format(name=name, seeds=seeds).replace("\n", " "),
        "seeds": list(range(FIRST_SEED, FIRST_SEED + seeds)),
        "methods": {label: flags for label, flags in methods.items() if label in (*KEPT, *chosen)},
        "benchmark": benchmark | {"data_dir": "data/confirm"},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path, metavar="VARIANTS.yaml")
    parser.add_argument("done", type=Path, metavar="VARIANTS_FOLDER", help="what the study left, with primary.csv")
    parser.add_argument("write", type=Path, metavar="CONFIRM.yaml", help="the study to write")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"how many (default: {SEEDS})")
    args = parser.parse_args()
    content = confirming(
        yaml.safe_load(args.study.read_text()), args.study.name, chosen_variants(args.done), args.seeds
    )
    try:
        with open(args.write, "x") as stream:
            yaml.safe_dump(content, stream, sort_keys=False, width=120)
    except FileExistsError:
        parser.error(f"{args.write} is there: expected a new file")
