"""Prints the numbers of docs/evidence.md that stand in no report, from the records and, if it is given, the start.

python benchmarks/evidence_numbers.py [START.safetensors]
"""

from __future__ import annotations

import csv
import io
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
EDGE = 5  # noises at either end of a run
GAIN, POWER, PAIRS = 0.3, 0.8, 6
MOST_SEEDS = 2000


def noise_growth(method: str) -> np.ndarray:
    """Of each run of ``cifar_nullspace``: log of the mean norm of its last noises divided by that of its first."""
    found = []
    with tarfile.open(EVIDENCE / "cifar_nullspace" / "records.tar.xz") as archive:
        for member in archive:
            if member.name.startswith(f"methods/{method}/") and member.name.endswith("/noise.csv"):
                rows = csv.DictReader(io.TextIOWrapper(archive.extractfile(member)))  # type: ignore[arg-type]
                norms = [float(row["norm"]) for row in rows]
                found.append(np.log(np.mean(norms[-EDGE:]) / np.mean(norms[:EDGE])))
    return np.array(found)


def with_interval(logs: np.ndarray) -> list[float]:
    """Geometric mean and Student's 95% interval of ratios, from their logs."""
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return [float(np.exp(logs.mean() + shift)) for shift in (0.0, -half, half)]


def endpoint_differences(method: str, against: str = "none") -> np.ndarray:
    """Of each seed of ``help``: the endpoint of ``method`` minus that of ``against``, in points."""
    columns: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in csv.DictReader((EVIDENCE / "help" / "report.csv").open(newline="")):
        if row["column"].startswith(("val top1", "fgsm top1", "c top1_mean")):
            columns[row["label"], row["seed"]].append(float(row["value"]))
    seeds = [seed for label, seed in columns if label == method and seed != "mean"]
    return np.array([np.mean(columns[method, seed]) - np.mean(columns[against, seed]) for seed in seeds])


def seeds_needed(deviation: float, level: float) -> int:
    """The fewest seeds with which a paired t test finds GAIN with the probability POWER (noncentral t)."""
    for seeds in range(2, MOST_SEEDS):
        quantile = stats.t.ppf(1 - level / 2, seeds - 1)
        if 1 - stats.nct.cdf(quantile, seeds - 1, GAIN / deviation * np.sqrt(seeds)) >= POWER:
            return seeds
    return MOST_SEEDS


def pixel_change(start: str, norm: float = 6.65) -> tuple[float, float]:
    """Root mean square of the pixels' change for random noise of this norm, and the projection's condition number."""
    import torch

    from ns_easyrobust import load_model
    from ns_easyrobust.nullspace import patch_pseudo_inverse, unpatchify

    factory = EVIDENCE.parents[1] / "benchmarks" / "studies" / "evidence" / "vit_small_patch14_112.py"
    inverse = patch_pseudo_inverse(load_model(f"{factory}:vit_small_patch14_112", start), space="pixel").float()
    noise = torch.randn(8, 64, 384, generator=torch.Generator().manual_seed(0))
    noise *= (norm / noise.flatten(1).norm(dim=1))[:, None, None]
    values = torch.linalg.svdvals(inverse)
    return float(unpatchify(noise @ inverse.T, 14, (3, 112, 112)).square().mean().sqrt()), float(
        values[0] / values[383]
    )


if __name__ == "__main__":
    for method in ("nullspace", "permuted"):
        ratio, low, high = with_interval(noise_growth(method))
        print(f"{method}: last {EDGE} noises / first {EDGE}: {ratio:.3f} [{low:.3f}, {high:.3f}]")
    differences = endpoint_differences("nullspace")
    deviation, df = float(differences.std(ddof=1)), len(differences) - 1
    for name, share in (("deviation", None), ("at least", 0.975), ("at most", 0.025)):
        value = deviation if share is None else deviation * float(np.sqrt(df / stats.chi2.ppf(share, df)))
        alone, corrected = (seeds_needed(value, level) for level in (0.05, 0.05 / PAIRS))
        print(f"{name} {value:.2f} points over seeds: {alone} seeds for {GAIN} points, {corrected} as one of {PAIRS}")
    if sys.argv[1:]:
        rms, condition = pixel_change(sys.argv[1])
        print(f"pixels change by {rms:.2f} (rms); the projection's gains differ by a factor of {condition:.0f}")
