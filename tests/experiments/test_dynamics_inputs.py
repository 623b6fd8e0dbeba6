"""Runs of which a course can be shown, and what is wrong with others, in a line."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import yaml

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.experiments.dynamics_inputs import find_runs

HEAD = (
    "step,norm,mse_probability,synthesis_steps,stopped,cosine,converged,held_out_mse_probability,held_out_upper,eps\n"
)


def args(**given) -> Namespace:
    return Namespace(**{"runs": [], "study": None, "methods": [], "before": None, "every": 1} | given)


@pytest.fixture
def make(tmp_path):
    """Writes the folder of a run as ``train`` leaves it."""
    (tmp_path / "start.pth").touch()

    def write(name, seed=0, steps=(4, 8), noises=None, start="start.pth", **flags):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        settings = {"seed": seed, "initial_checkpoint": str(tmp_path / start), "ns_eps": 0.03, **flags}
        (folder / "args.yaml").write_text(yaml.safe_dump(settings))
        for step in steps:
            (folder / f"checkpoint-{step}.pth.tar").touch()
        if noises:
            (folder / "noise.csv").write_text(HEAD + noises)
        return folder

    return write


def test_a_run_is_its_seed_its_start_its_checkpoints_and_its_noises(make, tmp_path):
    rows = "0,2.5,0.02,7,True,,True,0.01,0.015,0.05\n40,3.5,0.04,9,False,0.1,False,0.06,0.07,\n"
    plain, noisy = make("a", seed=7), make("b", seed=7, noises=rows, steps=(12, 4, 8))
    (plain / "checkpoint-12.pth.tar").touch()
    first, second = find_runs(args(runs=[f"none={plain}", f"ns={noisy}"]))
    assert (first.label, first.seed, first.start, first.eps) == ("none", 7, str(tmp_path / "start.pth"), [])
    assert list(second.checkpoints.items()) == [(step, noisy / f"checkpoint-{step}.pth.tar") for step in (4, 8, 12)]
    assert second.eps == [0.05, 0.03]  # its own, or else the flag's
    assert [(n.step, n.norm, n.mse_probability, n.stopped, n.held_out) for n in second.noises] == [
        (0, 2.5, 0.02, True, 0.01), (40, 3.5, 0.04, False, 0.06),
    ]  # fmt: skip
    assert list(find_runs(args(runs=[f"none={plain}"], every=8))[0].checkpoints) == [8]
    assert find_runs(args(runs=[f"none={plain}"], before="hf_hub:some/model"))[0].start == "hf_hub:some/model"


def test_of_a_study_the_finished_runs(make, tmp_path):
    folder = make("study/methods/ns/seed3", seed=3)
    (folder / "last.pth.tar").touch()
    (folder / "study.json").write_text(json.dumps({"trained": True}))
    (found,) = find_runs(args(study=str(tmp_path / "study")))
    assert (found.label, found.seed, found.folder) == ("ns", 3, folder)


def test_what_is_wrong_is_one_line(make, tmp_path):
    plain = make("plain")
    cases = {
        "both or neither": args(),
        "--methods: expected with --study alone": args(runs=[f"a={plain}"], methods=["a"]),
        "expected LABEL=FOLDER": args(runs=[str(plain)]),
        "expected the folder of a run of train": args(runs=[f"a={tmp_path}"]),
        r"expected checkpoints kept every N updates \(train --keep-interval N\), found none": args(
            runs=[f"a={make('bare', steps=())}"]
        ),
        r"at multiples of 5 \(--every\), found none": args(runs=[f"a={plain}"], every=5),
        r"expected the checkpoint that it was trained from, found none at .*gone\.pth\. Give --before": args(
            runs=[f"a={make('startless', start='gone.pth')}"]
        ),
        "plain, seed 0: expected each seed of a method once": args(runs=[f"plain={plain},{plain}"]),
        "b: expected the seeds of a, 0, found 1": args(runs=[f"a={plain}", f"b={make('seed1', seed=1)}"]),
        "expected checkpoints of the same updates as in .*, 4, 8, found 4": args(
            runs=[f"a={plain}", f"b={make('short', steps=(4,))}"]
        ),
        "expected a run's noises, found other things": args(runs=[f"a={make('damaged', noises='0,nan')}"]),
    }
    for line, given in cases.items():
        with pytest.raises((OptionError, DataError), match=line) as caught:
            find_runs(given)
        assert "\n" not in caught.value.line


def test_noises_of_several_companions_are_refused(make):
    folder = make("joined", noises="0,2.5,0.02,7,True,,,,,0.05\n")
    (folder / "random-noise.csv").write_text(HEAD)
    with pytest.raises(DataError, match="expected the noises of one companion"):
        find_runs(args(runs=[f"a={folder}"]))
