"""``eps`` from a study's records with known bits; and studies that cannot answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.records import make, paths_of

from ns_easyrobust.cli import main as cli
from ns_easyrobust.evaluation.per_image import images_digest, save_correctness
from ns_easyrobust.evaluation.results_file import append_record

N = 200


@pytest.fixture
def study(tmp_path):
    """Writes a run of a method: its flags, its noise, and how many images it gets right, clean and under FGSM."""

    def write(label, aug, eps, clean, fgsm, seed=0, norm=None, flags=()):
        folder = tmp_path / "study" / "methods" / label / f"seed{seed}"
        folder.mkdir(parents=True)
        record = {"flags": {"aug": aug, "ns_eps": eps, **dict(flags)}, "trained": True}
        (folder / "study.json").write_text(json.dumps(record))
        if norm:
            head = "step,norm,mse_probability,stopped,held_out_mse_probability,converged"
            (folder / "noise.csv").write_text(
                f"{head}\n0,{norm},0.02,True,0.01,True\n40,{norm + 2},0.02,True,0.03,True\n"
            )
        for suite, right, settings in (("imagenet-val", clean, {}), ("fgsm", fgsm, {"epsilon": 1 / 255})):
            bits, paths = np.arange(N) < right, paths_of(suite, N)
            saved = save_correctness(folder, f"{label}-{suite}", paths, bits)
            protocol = {"resize": 32, "preset": "custom", "subset": "all", **settings}
            append_record(
                folder / "results.jsonl",
                make(f"{label}, seed {seed}", suite, right, n=N, protocol=protocol, right=saved, unit="%",
                     images=images_digest(paths)),
            )  # fmt: skip

    return write


def lines_of(folder):
    return [json.loads(line) for line in (folder / "eps.jsonl").read_text().splitlines()][1:-1]


def test_differences_are_those_of_the_bits_and_methods_are_known_by_their_flags(study, tmp_path, capsys, draw_no_more):
    study("plain", "none", 0.03, 100, 40)
    study("a", "nullspace", 0.1, 110, 40, norm=5.0)
    study("b", "random", 0.1, 120, 20, norm=1.0)
    study("c", "nullspace", 0.03, 100, 50, norm=3.0)
    out = tmp_path / "out"
    words = ["experiment", "eps", "--study", str(tmp_path / "study"), "-o", str(out)]
    assert cli.main(words) == 0
    lines = lines_of(out)
    found = {
        (line["aug"], line["eps"], line["measure"].partition(":")[0]): line["delta"]
        for line in lines
        if line["kind"] == "accuracy" and "delta" in line
    }
    assert found == pytest.approx({
        ("nullspace", 0.1, "clean"): 5.0, ("nullspace", 0.1, "Adversarial"): 0.0, ("nullspace", 0.1, "total"): 2.5,
        ("random", 0.1, "clean"): 10.0, ("random", 0.1, "Adversarial"): -10.0, ("random", 0.1, "total"): 0.0,
        ("nullspace", 0.03, "clean"): 0.0, ("nullspace", 0.03, "Adversarial"): 5.0, ("nullspace", 0.03, "total"): 2.5,
    })  # fmt: skip
    contrasts = {line["measure"].partition(":")[0]: line for line in lines if line["kind"] == "contrast"}
    assert {(line["other"], line["eps"]) for line in contrasts.values()} == {("random", 0.1)}
    assert contrasts["Adversarial"]["delta"] == pytest.approx(10.0)
    assert contrasts["Adversarial"]["low"] > 0
    noises = {line["label"]: (line["norm"], line["held_out"]) for line in lines if line["kind"] == "noise"}
    assert noises["nullspace, eps 0.1"] == (6.0, pytest.approx(0.02))
    shown = " ".join(capsys.readouterr().out.split())
    assert "Nullspace against random noise of the same eps: clean: behind at eps 0.1" in shown
    assert "Adversarial: ahead at eps 0.1 (+10.00 to +10.00 points; intervals from +" in shown
    assert "Nullspace minus other noise: before Holm's correction 2 of 3 intervals exclude 0" in shown
    assert (out / "eps.png").read_bytes().startswith(b"\x89PNG")
    assert "-1.13" in (out / "eps.md").read_text()  # the paper: 56.26 - 55.13, of mCE less is better
    draw_no_more()
    assert cli.main(words) == 0  # again, from what is there
    assert lines_of(out) == lines
    assert cli.main([*words, "--force", "--kinds", "nullspace"]) == 0
    assert {line["aug"] for line in lines_of(out)} == {"none", "nullspace"}


def test_a_study_that_cannot_answer_is_one_line(study, tmp_path, capsys):
    def error(*more):
        assert (
            cli.main(["experiment", "eps", "--study", str(tmp_path / "study"), "-o", str(tmp_path / "o"), *more]) == 2
        )
        return capsys.readouterr().err.strip().splitlines()[-1]

    study("a", "nullspace", 0.1, 110, 40, norm=5.0)
    assert "expected one method without noise (aug none), to compare the others with, found none" in error()
    study("plain", "none", 0.03, 100, 40)
    assert "expected methods with noise of some eps (--aug, --ns-eps), found none" in error("--methods", "plain")
    assert "found sensitive, which it does not have" in error("--kinds", "nullspace", "sensitive")
    study("b", "nullspace", 0.1, 110, 40, norm=5.0, flags={"ns_fresh": True})
    assert "expected one method of each kind of noise and eps, found a and b" in error()
    (tmp_path / "study" / "methods" / "b" / "seed0" / "results.jsonl").unlink()
    assert "expected the records of an evaluation, found none" in error()
    assert "expected finished methods" in error("--methods", "nobody")
