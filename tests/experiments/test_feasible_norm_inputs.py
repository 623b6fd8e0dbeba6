"""The checkpoints of a comparison: by name, and of a study's folder."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from ns_easyrobust.errors import DataError, OptionError
from ns_easyrobust.experiments.feasible_norm_inputs import find_inputs, named_paths
from ns_easyrobust.experiments.study_plan import LAST, Run
from ns_easyrobust.experiments.study_record import RunRecord


def args(**given) -> Namespace:
    return Namespace(**{"before": None, "after": [], "study": None, "methods": []} | given)


@pytest.fixture
def study(tmp_path):
    """Writes runs of ``label``, ``seed`` and start into a study's folder."""

    def write(label, seed, start="start.pth", trained=True, noise=False):
        slug = label.lower().replace(" ", "_")
        run = Run(label, seed, tmp_path / "study" / "methods" / slug / f"seed{seed}", {}, 1, None, None, {})
        run.folder.mkdir(parents=True)
        RunRecord({"initial_checkpoint": str(tmp_path / start)}, trained=trained).write(run)
        (run.folder / LAST).touch()
        if noise:
            (run.folder / "noise.pt").touch()

    (tmp_path / "start.pth").touch()
    return write


def test_labels_may_repeat_and_hold_several_seeds(tmp_path):
    (tmp_path / "noise.pt").touch()
    inputs = find_inputs(args(before="s.pth", after=["b=1.pth,2.pth", "a=x/3.pth", f"b={tmp_path}/4=5.pth"]))
    assert inputs.start == "s.pth"
    assert [(one.label, one.seed, one.path) for one in inputs.trained] == [
        ("b", 0, "1.pth"), ("b", 1, "2.pth"), ("b", 2, f"{tmp_path}/4=5.pth"), ("a", 0, "x/3.pth"),
    ]  # fmt: skip
    assert [one.noise for one in inputs.trained] == [None, None, tmp_path / "noise.pt", None]


def test_the_start_s_label_is_refused_where_there_is_a_start_alone():
    assert list(named_paths(["before=a.pth"], "--models", "CKPT")) == [("before", "a.pth")]
    with pytest.raises(OptionError, match="--after: expected any label but before"):
        find_inputs(args(before="s.pth", after=["before=a.pth"]))


def test_of_a_study_the_finished_runs_count_by_the_names_and_in_the_order_of_its_file(study, tmp_path, caplog):
    for seed in (10, 2):
        study("My Noise", seed, noise=True)
        study("none", seed, trained=seed == 2)
    costs = [{"method": "none"}, {"method": "My Noise"}]
    (tmp_path / "study" / "costs.json").write_text(json.dumps(costs))
    inputs = find_inputs(args(study=str(tmp_path / "study")))
    assert inputs.start == str(tmp_path / "start.pth")
    assert [(one.label, one.seed) for one in inputs.trained] == [("none", 2), ("My Noise", 2), ("My Noise", 10)]
    assert [one.noise is not None for one in inputs.trained] == [False, True, True]
    assert "left out, as their training is not finished: none, seed 10" in caplog.text
    chosen = find_inputs(args(study=str(tmp_path / "study"), methods=["My Noise"], before="other.pth"))
    assert chosen.start == "other.pth"
    assert {one.label for one in chosen.trained} == {"My Noise"}


def test_of_a_study_what_is_missing_is_one_line(study, tmp_path):
    folder = str(tmp_path / "study")
    with pytest.raises(DataError, match="found none that is finished"):
        find_inputs(args(study=folder))
    study("a", 0)
    with pytest.raises(OptionError, match="--methods: expected finished methods"):
        find_inputs(args(study=folder, methods=["b"]))
    study("before", 0)
    with pytest.raises(OptionError, match="expected methods of any name but before"):
        find_inputs(args(study=folder))
    (tmp_path / "study" / "methods" / "before" / "seed0" / "study.json").unlink()
    study("a", 1, start="other.pth")
    with pytest.raises(OptionError, match="expected one start of all its runs"):
        find_inputs(args(study=folder))
    assert find_inputs(args(study=folder, before="b.pth")).start == "b.pth"
    (tmp_path / "start.pth").unlink()
    study("b", 0)
    with pytest.raises(DataError, match=r"found none at .*start\.pth\. Give --before"):
        find_inputs(args(study=folder, methods=["b"]))
    (tmp_path / "study" / "costs.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a study's costs"):
        find_inputs(args(study=folder))
