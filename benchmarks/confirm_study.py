"""The study that confirms or refutes the best variants of another: on other images, with other seeds.

python benchmarks/confirm_study.py VARIANTS.yaml VARIANTS_FOLDER CONFIRM.yaml
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import yaml

KEPT = ("none", "random", "permuted", "nullspace")
CHOSEN = 2
SEEDS = list(range(20, 28))
QUESTION = "Do the two best of variants.yaml beat plain finetuning, random noise and norm-matched noise, elsewhere too?"
PROTOCOL = """\
The rule was written before the first run: of the variants in variants.yaml, the two of the highest mean over seeds of its
primary endpoint. They are judged here by the same measure, on the images of the part "confirm", which nothing else has
looked at, with eight fresh seeds, none added afterwards. A variant is recommended if it is better than none, random and
permuted after Holm's correction over all pairs of this study."""


def chosen_variants(folder: Path) -> list[str]:
    """The variants of a finished study with the highest values of its primary endpoint, the best first."""
    with open(folder / "primary.csv", newline="") as lines:
        values = {row["method"]: float(row["method_value"]) for row in csv.DictReader(lines) if row["method_value"]}
    variants = [method for method in values if method not in KEPT]
    return sorted(variants, key=lambda method: -values[method])[:CHOSEN]


def confirming(study: dict[str, object], chosen: list[str]) -> dict[str, object]:
    """``study`` with the chosen methods beside the references, other seeds, and the images of the part confirm."""
    methods, benchmark = study["methods"], study["benchmark"]
    assert isinstance(methods, dict)
    assert isinstance(benchmark, dict)
    return study | {
        "question": QUESTION,
        "protocol": PROTOCOL,
        "seeds": SEEDS,
        "methods": {label: flags for label, flags in methods.items() if label in (*KEPT, *chosen)},
        "benchmark": benchmark | {"data_dir": "data/confirm"},
    }


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python benchmarks/confirm_study.py VARIANTS.yaml VARIANTS_FOLDER CONFIRM.yaml")
    read, done, write = map(Path, sys.argv[1:])
    study = confirming(yaml.safe_load(read.read_text()), chosen_variants(done))
    write.write_text(yaml.safe_dump(study, sort_keys=False, width=120))
