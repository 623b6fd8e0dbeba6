"""A study through the command line: refused in one line, dry, to its end, and after kills."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from helpers.models import small_vit
from helpers.records import make

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.results_file import append_record, read_records
from ns_easyrobust.experiments.study_file import read_study
from ns_easyrobust.experiments.study_plan import LAST, Run, Step
from ns_easyrobust.experiments.study_record import RunRecord, require_unchanged
from ns_easyrobust.experiments.study_report import write_study
from ns_easyrobust.experiments.study_run import carry_out
from ns_easyrobust.experiments.study_slots import Slot
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.training import TrainingCost

TRAIN = {"batch_size": 16, "lr": 1e-3, "workers": 0, "epoch_steps": 2, "select": "last", "val_interval": 100}
PRIMARY = {"primary": {"columns": "all", "against": ["none"]}}
METHODS = {"none": {}, "sphere": {"aug": "nullspace", "ns_solver": "sphere", "ns_max_steps": 2, "ns_interval": 3}}


@pytest.fixture
def study(tmp_path, digits_dir, monkeypatch):
    """Writes a study's file, with changes of the one that works; returns the words of its command."""
    monkeypatch.chdir(tmp_path)
    save_model(small_vit(), tmp_path / "start.pth.tar", arch="vit_micro_patch8_32")

    def write(**changes):
        content = {"start": "start.pth.tar", "data_dir": str(digits_dir), "seeds": [0, 1], "budget": {"updates": 2}}
        content |= {"train": TRAIN, "baseline": "none", "methods": METHODS}
        content |= {"benchmark": {"suite": ["val"], "subset": ["random:40"], "crop_pct": 1, "workers": 0}}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
        return ["experiment", "study", "-c", "s.yaml", "-o", "out", "--devices", "cpu"]

    return write


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metods": {}}, "found metods"),
        ({"methods": {}}, "methods: expected one at least, found none"),
        ({"methods": {"none": {"lerning_rate": 1}}}, "methods: none: expected names of flags, found lerning_rate"),
        ({"methods": {"none": {"epochs": 1}}}, "methods: none: epochs: set by budget"),
        ({"methods": {"none": {"aug": "nulspace"}}}, "methods: none: argument --aug"),
        ({"methods": {"none": {"config": "augmicks"}}}, "methods: none: augmicks: expected a YAML file"),
        ({"methods": {"a b": {}, "a_b": {}}, "baseline": None}, "expected names that differ"),
        ({"benchmark": {"suite": ["vall"]}}, "benchmark: argument --suite"),
        ({"benchmark": {"suite": ["val"], "subset": ["few"]}}, "benchmark: "),
        ({"baseline": "nobody"}, "baseline: expected some of none, sphere, found nobody"),
        ({"primary": {"columns": "all"}}, "primary: expected columns and against, such as"),
        (
            {"primary": {"columns": ["val", "c:blur"], "against": ["none"]}},
            "benchmark: suite: expected c too, as an endpoint's columns have c:blur, found val",
        ),
        ({"primary": {"columns": ["all"], "against": ["none"]}}, "primary: columns: expected all or robust"),
        ({"primary": {"columns": "all", "against": "none"}}, "primary: against: expected a list of methods"),
        ({"primary": {"columns": "all", "against": ["none", "x"]}}, "primary: against: expected some of none, sphere"),
        (
            {"primary": {"columns": "all", "against": ["none"]}, "methods": {"none": {}}},
            "primary: against: expected another method than the only one",
        ),
        (
            {"primary": {"columns": ["val", "c:dust"], "against": ["none"]}},
            "c:noise, c:blur, c:weather, c:digital, c:not-noise), found ['val', 'c:dust']",
        ),
        ({"secondary": [{"columns": "all", "against": ["none"]}]}, "secondary: expected a primary endpoint beside it"),
        ({**PRIMARY, "secondary": {"columns": "all", "against": ["none"]}}, "secondary: expected a list such as"),
        ({**PRIMARY, "secondary": [PRIMARY["primary"], {"columns": "all"}]}, "secondary: 2: expected columns and"),
        (
            {**PRIMARY, "secondary": [{"columns": ["c:blur"], "against": ["x"]}]},
            "secondary: 1: against: expected some of none, sphere, found x",
        ),
        ({"question": ["one"]}, "question: expected text, found ['one']"),
        ({"protocol": ""}, "protocol: expected text, found ''"),
        ({"seeds": [0, 0]}, "seeds: expected each once"),
        ({"seeds": 3}, "seeds: expected a list"),
        ({"budget": {"updates": 0.5}}, "budget: updates: expected a whole number"),
        ({"budget": {"steps": 5}}, "budget: expected updates or forward_equivalents"),
        ({"budget": {"forward_equivalents": 5}}, "sphere: expected a budget of 12 forward-equivalents"),
        ({"start": "nowhere.pth"}, "start: expected a checkpoint, found none at nowhere.pth"),
        ({"checkpoints": {"DAT": {"path": "dat.pth"}}}, "checkpoints: DAT: path: expected a checkpoint"),
        ({"checkpoints": {"DAT": {}}}, "checkpoints: DAT: path: expected a file"),
        ({"ema": True}, "ema: expected a method with model_ema"),
        ({"data_dir": "nowhere"}, "nowhere"),
        ({"start": "~nobody-of-this-name/x.pth"}, "start: expected a path"),
        ({"methods": {"two\nlines": {}}, "baseline": None}, "methods: expected names of a line"),
        ({"methods": {"a\0b": {}}, "baseline": None}, "found 'a\\x00b'"),
        (
            {"ema": True, "methods": {"a": {"model_ema": True}, "a (EMA)": {}}, "baseline": None},
            "'a (EMA)': expected another name, as ema gives it",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_begun(study, tmp_path, capsys, changes, line):
    assert cli.main(study(**changes)) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_commands_and_costs(study, tmp_path, capsys):
    """By hand: an update 3, or 6 and 2 steps of 3 before each third one; 27 buy 9 plain ones, or 1 round of 24."""
    assert cli.main([*study(budget={"forward_equivalents": 27}), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("ns-easyrobust train ") == out.count("ns-easyrobust benchmark ") == 4
    assert out.count("--max-steps=9 ") == 2
    assert out.count("--max-steps=3 ") == 2
    assert "3 updates; forward-equivalents: 6 an update and at most 6 every 3, at most 24 in all" in out
    assert not (tmp_path / "out").exists()


def test_an_evaluation_is_told_of_code_that_builds_the_model(study, tmp_path, capsys):
    """A checkpoint's own word for it is never run, so without the flag no run of a study could be evaluated."""
    (tmp_path / "vit.py").write_text(
        "from timm.models import create_model\ndef small(num_classes=10, depth=2):\n    pass\n"
    )
    words = study(model="vit.py:small", train=TRAIN | {"model_kwargs": {"depth": 3}})
    assert cli.main([*words, "--dry-run"]) == 0
    evaluations = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ns-easyrobust benchmark")]
    assert len(evaluations) == 4
    assert all("--model=vit.py:small --model-kwargs depth=3 " in line for line in evaluations)


def test_a_report_alone_needs_neither_start_nor_data(study, tmp_path, capsys):
    methods = {"none": {}, "masks": {"aug": "relevance"}}  # whose cost is known without its images
    words = study(start="gone.pth", data_dir="gone", methods=methods, checkpoints={"x": {"path": "gone.pth"}})
    assert cli.main([*words, "--report-only"]) == 2
    assert "--output: expected the folder of a study, found no run of it in out" in capsys.readouterr().err
    (tmp_path / "out").mkdir()  # somebody's
    assert cli.main([*words, "--report-only"]) == 2
    assert not list((tmp_path / "out").iterdir())
    capsys.readouterr()
    for label, folder in {
        "none, seed 0": "methods/none/seed0",
        "none, seed 1": "methods/none/seed1",
        "x": "checkpoints/x",
    }.items():
        (tmp_path / "out" / folder).mkdir(parents=True)
        append_record(tmp_path / "out" / folder / "results.jsonl", make(label))
        (tmp_path / "out" / folder / "study.json").write_text("{}")
    assert cli.main([*words, "--report-only"]) == 0
    assert "| none (baseline) |" in (tmp_path / "out" / "report.md").read_text()
    assert "| masks | aug: relevance | 2 | 4 an update |" in (tmp_path / "out" / "report.md").read_text()
    assert cli.main(words) == 2  # to carry it out is another matter
    assert "expected a folder, found none at gone" in capsys.readouterr().err


def test_what_fails_is_tried_no_further_but_a_suite_that_is_missing_stops_nothing(tmp_path, monkeypatch):
    """Trainings of `bad` fail; evaluations of `good` end with 3, as benchmark does where a suite was not run."""
    begun = []

    def start(words, **options):
        verb, run = words[3], words[4]
        begun.append((verb, run))
        (folder := tmp_path / run).mkdir(exist_ok=True)
        if verb == "train":
            (folder / LAST).touch()
        code = {"bad": 2, "good": 3 * (verb == "benchmark")}[run.rstrip("01")]
        line = f"ns-easyrobust {verb}: no {run}"
        return Popen(
            [sys.executable, "-c", f"import sys; print({line!r}, file=sys.stderr); sys.exit({code})"], **options
        )

    Popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("ns_easyrobust.experiments.study_run._POLL", 0.01)
    runs = [
        Run(label, seed, tmp_path / f"{label}{seed}", {}, 1, None, Step("train", (f"{label}{seed}",)),
            {part: Step("benchmark", (f"{label}{seed}", part)) for part in ("raw", "ema")})
        for seed in (0, 1) for label in ("bad", "good")
    ]  # fmt: skip
    failed = carry_out(runs, [Slot("cpu", "cpu", {})])
    assert failed == {"bad, seed 0": "no bad0", "good, seed 0": "no good0", "good, seed 1": "no good1"}
    tried = [("train", "bad0"), *[(verb, f"good{s}") for s in (0, 1) for verb in ("train", "benchmark", "benchmark")]]
    assert begun == tried


def test_a_method_that_could_not_be_built_may_be_mended_and_one_that_began_may_not(tmp_path):
    run = Run("a", 0, tmp_path, {"lr": 1.0}, 1, None, Step("train", ()), {})
    RunRecord({"lr": 2.0}).write(run)
    require_unchanged([run], {})
    (tmp_path / "args.yaml").touch()
    with pytest.raises(OptionError, match=r"a, seed 0: lr: expected 2\.0, with which the run .* began, found 1\.0"):
        require_unchanged([run], {})
    finished = Run("b", None, tmp_path, {"path": "new.pth"}, 0, None, None, {})
    RunRecord({"path": "old.pth"}).write(finished)
    require_unchanged([finished], {})
    RunRecord({"path": "old.pth"}, measured=[["--ckpt-path=old.pth"]]).write(finished)
    with pytest.raises(OptionError, match=r"b: path: expected old\.pth"):
        require_unchanged([finished], {})


def test_weights_that_are_gone_are_trained_and_measured_again_and_no_secret_is_kept(tmp_path):
    step = Step("benchmark", ("--ckpt-path=https://me:secret@example.org/a.pth",))
    run = Run("a", 0, tmp_path, {}, 1, None, Step("train", ()), {"a": step})
    (tmp_path / "results.jsonl").touch()
    record = RunRecord(trained=True, measured=[["--ckpt-path=https://***@example.org/a.pth"]])
    assert record.lacks(run) == ["train", "a"]
    (tmp_path / LAST).touch()
    assert record.lacks(run) == []


def test_a_report_is_of_the_newest_weights_and_names_are_shown_as_they_are(tmp_path):
    """A run that was trained anew has records of two checkpoints in its file; a name may be no Markdown."""
    run = Run(
        "a|*b*",
        0,
        tmp_path / "run",
        {},
        1,
        TrainingCost(3),
        Step("train", ()),
        {"a|*b*, seed 0": Step("benchmark", ())},
    )
    run.folder.mkdir()
    RunRecord(updates=1, trained=True).write(run)
    for sha256, right, created in (
        ("a" * 64, 10, "2026-01-01T00:00:00+00:00"),
        ("b" * 64, 30, "2026-01-02T00:00:00+00:00"),
    ):
        record = make("a|*b*, seed 0", "imagenet-val", right, n=40)
        append_record(run.results, replace(record, checkpoint_sha256=sha256, created=created))
    said = "question: does *x* help?\nprotocol: |\n  # not a heading\n    <b>three</b> seeds\n\n  - stop\n"
    said += "primary: {columns: all, against: [x]}\ncheckpoints: {x: {path: x.pth}}\n"
    (run.folder / "noise.csv").write_text(
        "step,norm,mse_probability,stopped,held_out_mse_probability,converged\n0,7,0.02,True,0.02,True\n"
    )
    (tmp_path / "s.yaml").write_text(
        said + "budget: {updates: 1}\nmethods: {'a|*b*': {aa: 'x|y', amp: true, scale: [2/255, 1]}}\n"
    )
    assert "75.00" in write_study(read_study(tmp_path / "s.yaml"), [run], tmp_path, 120)
    text = (tmp_path / "report.md").read_text()
    assert r"| a\|\*b\* | aa: x\|y; amp: true; scale: \[2/255, 1\] | 1 | 3 an update |" in text
    assert "25.00" not in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[-4:] == ["## Results", "## Primary endpoint", "## Noises", "## Methods"]
    assert r"a\|\*b\* and x: not compared, as x is not done." in text
    assert (tmp_path / "primary.csv").read_text().splitlines()[1].startswith("a|*b*,x,")
    assert (tmp_path / "noises.csv").read_text().splitlines()[1].startswith("a|*b*,0,1,7.0,")
    assert "# s.yaml\n\n## Question\n\ndoes \\*x\\* help?\n\n## Protocol\n\n\\# not a heading\\\n" in text
    assert "\n\\<b\\>three\\</b\\> seeds\n\n\\- stop\n\n## Results\n\nEach method was trained" in text


def test_a_report_has_its_secondary_endpoints_and_corruptions(tmp_path):
    runs = []
    for label, right in (("a", 10), ("b", 14)):
        run = Run(
            label,
            0,
            tmp_path / label,
            {},
            1,
            TrainingCost(3),
            Step("train", ()),
            {f"{label}, seed 0": Step("benchmark", ())},
        )
        run.folder.mkdir()
        RunRecord(updates=1, trained=True).write(run)
        append_record(run.results, make(f"{label}, seed 0", "imagenet-val", right, n=40))
        for name, own in (("shot_noise", 2), ("fog", right)):
            protocol = {"corruption": name, "severity": 3}
            append_record(run.results, make(f"{label}, seed 0", "imagenet-c", own, n=40, protocol=protocol))
        runs.append(run)
    endpoints = {"primary": {"columns": ["val", "c:not-noise"], "against": ["a"]}}
    endpoints["secondary"] = [{"columns": ["c:noise"], "against": ["a"]}, {"columns": "all", "against": ["a"]}]
    content = {"budget": {"updates": 1}, "methods": {"a": {}, "b": {}}, "baseline": "a", **endpoints}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    write_study(read_study(tmp_path / "s.yaml"), runs, tmp_path, 120)
    headings = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("## ")]
    secondary = ["## Secondary endpoint: c:noise", "## Secondary endpoint: all"]
    assert headings == ["## Primary endpoint", *secondary, "## By corruption", "## Methods"]
    deltas = {}
    for name in ("primary", "secondary_1", "secondary_2"):
        with open(tmp_path / f"{name}.csv", newline="") as lines:
            (row,) = csv.DictReader(lines)
        deltas[name] = float(row["delta"])
    assert deltas == pytest.approx({"primary": 10, "secondary_1": 0, "secondary_2": 20 / 3})
    assert "corruption,fog,1,b,35.0,1,10.0," in (tmp_path / "corruptions.csv").read_text()


@pytest.mark.stress
def test_a_study_to_its_end_and_again(study, tmp_path, capsys):
    words = study(checkpoints={"start": {"path": "start.pth.tar"}})
    assert cli.main(words) == 0
    assert {"report.md", "report.csv", "costs.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert [(one["method"], one["seed"], one["updates"]) for one in costs][:2] == [("none", 0, 2), ("sphere", 0, 2)]
    results = sorted((tmp_path / "out").rglob("results.jsonl"))
    assert {r.label for path in results for r in read_records(path)} == {
        "start", "none, seed 0", "none, seed 1", "sphere, seed 0", "sphere, seed 1",
    }  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.pth.tar")}
    assert cli.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.pth.tar")} == before
    capsys.readouterr()
    assert cli.main(study(train=TRAIN | {"lr": 0.01})) == 2
    assert "none, seed 0: lr: expected 0.001, with which the run in" in capsys.readouterr().err


@pytest.mark.stress
def test_after_kill_9_no_process_is_left_and_the_same_command_goes_on(study, tmp_path):
    words = [sys.executable, "-m", "ns_easyrobust", *study(budget={"updates": 40}, seeds=[0], methods={"none": {}})]
    begun = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    run = tmp_path / "out" / "methods" / "none" / "seed0"
    while not (run / "state.pth.tar").exists():
        assert begun.poll() is None
        time.sleep(0.05)
    holder = int((run / ".lock").read_text().split()[1])
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    deadline = time.monotonic() + 30
    while (run / ".lock").exists():
        assert time.monotonic() < deadline, f"process {holder} goes on"
        time.sleep(0.1)
    assert subprocess.run(words, check=False).returncode == 0
    assert "resumed" in (run / "train.log").read_text()
