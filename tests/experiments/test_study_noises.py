"""The noises of a study's runs: their numbers by hand, and what cannot be read."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch

from ns_easyrobust.experiments.study_noises import noises_csv, noises_markdown, read_noises
from ns_easyrobust.experiments.study_plan import Run, Step
from ns_easyrobust.nullspace import Influence, Noise, NoiseConfig
from ns_easyrobust.training.augmentations.noise_history import noise_row, write_noises


def write(folder: Path, seed: int, norms: list[float], held_out: list[float | None], prefix: str = "") -> Run:
    """A run as training leaves it, with noises of these norms."""
    run = Run("a|b", seed, folder / f"seed{seed}", {"ns_eps": 0.03}, 1, None, Step("train", ()), {})
    run.folder.mkdir(exist_ok=True)
    noises = [
        Noise(torch.full((1, 1, 1), norm), 0.02, 5, True, None if own is None else Influence(own, own + 0.01, 0, 1, 4),
              (), NoiseConfig(eps=0.03))
        for norm, own in zip(norms, held_out, strict=True)
    ]  # fmt: skip
    write_noises(run.folder, prefix, [noise_row(step, noise, None) for step, noise in enumerate(noises)], noises[-1])
    return run


@pytest.fixture
def found(tmp_path):
    """Two seeds with 2 and 1 noises, of which the last is over eps with its bound; and a companion beside another."""
    runs = [write(tmp_path, 0, [2.0, 4.0], [0.01, 0.015]), write(tmp_path, 1, [9.0], [0.025])]
    write(tmp_path, 1, [1.0], [None], "random-")
    (tmp_path / "seed2").mkdir()
    return read_noises([*runs, Run("none", 2, tmp_path / "seed2", {}, 1, None, Step("train", ()), {})])


def test_the_numbers_of_all_seeds(found):
    """By hand: (2 + 4 + 9) / 3 = 5 and (.01 + .015 + .025) / 3 = 1 / 60."""
    lines = noises_markdown(found).splitlines()
    assert lines[0] == "## Noises"
    assert lines[-2:] == [
        r"| a\|b | 1 to 2 | 5 (2 to 9) | 0.01667 (0.01 to 0.025) | 0.03 | 2 of 3 |",
        r"| a\|b: random | 1 | 1 (1) | not measured | 0.03 | not measured |",
    ]
    rows = list(csv.DictReader(io.StringIO(noises_csv(found))))
    assert [(row["method"], row["seed"], row["noises"], row["norm_mean"], row["feasible"]) for row in rows] == [
        ("a|b", "0", "2", "3.0", "2"),
        ("a|b", "1", "1", "9.0", "0"),
        ("a|b", "all", "3", "5.0", "2"),
        ("a|b: random", "1", "1", "1.0", "0"),
        ("a|b: random", "all", "1", "1.0", "0"),
    ]
    assert rows[3]["held_out_mean"] == ""
    assert noises_markdown({}) == ""


HEAD = b"step,norm,mse_probability,stopped,held_out_mse_probability,converged\n"


@pytest.mark.parametrize(
    "content", [b"", b"norm\n1\n", b"\xff", HEAD + b"0,nan,1,True,,\n", HEAD + b"0,1,1,True,,maybe\n", HEAD + b"\n,\n"]
)
def test_a_damaged_file_is_left_out_with_a_warning(tmp_path, caplog, content):
    run = write(tmp_path, 0, [1.0], [None])
    (run.folder / "noise.csv").write_bytes(content)
    assert read_noises([run]) == {}
    assert "left out of the table of noises" in caplog.text


def test_an_eps_of_each_noise_comes_before_the_flag(tmp_path):
    run = write(tmp_path, 0, [1.0], [None])
    rows = "0,1,0.09,True,,,0.1\n40,3,0.2,True,,,0.3\n"
    (run.folder / "noise.csv").write_text(f"{HEAD.decode().strip()},eps\n{rows}")
    assert "| 2 (1 to 3) | not measured | 0.1 to 0.3 | not measured |" in noises_markdown(read_noises([run]))
