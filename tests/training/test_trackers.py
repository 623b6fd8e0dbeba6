"""A run's numbers in TensorBoard's own reader, and what wandb is handed."""

from __future__ import annotations

import csv
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import OptionError
from ns_easyrobust.training.trackers import Trackers


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def words(digits_dir, tmp_path):
    return [
        *("train", "--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", str(digits_dir), "-j", "0"),
        *("--device", "cpu", "-b", "16", "--epochs", "2", "--epoch-steps", "4", "--log-interval", "2"),
        *("--aug", "nullspace", "--ns-interval", "4", "--ns-max-steps", "2", "--select", "last"),
        *("--output", str(tmp_path), "--experiment", "run", "--log-tensorboard"),
    ]  # fmt: skip


def test_tensorboard_has_the_runs_numbers_and_the_noises(words, tmp_path):
    assert cli.main(words) == 0
    found = scalars(tmp_path / "run" / "tensorboard")
    assert {tag: [step for step, _ in values] for tag, values in found.items() if tag != "lr"} == {
        **{key: [2, 4, 6, 8] for key in ("loss", "noisy_loss")},
        **{key: [4, 8] for key in ("eval_loss", "eval_top1")},
        **{key: [2, 4, 4, 6, 8, 8] for key in ("noise_norm", "noise_mse_probability")},
    }
    with open(tmp_path / "run" / "noise.csv", newline="") as stream:
        noises = list(csv.DictReader(stream))
    norms = [value for _, value in found["noise_norm"]]
    assert norms == pytest.approx([float(noises[0]["norm"])] * 3 + [float(noises[1]["norm"])] * 3, rel=1e-6)
    with open(tmp_path / "run" / "summary.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [value for _, value in found["eval_top1"]] == pytest.approx([float(row["eval_top1"]) for row in rows])


def test_what_a_killed_run_wrote_after_its_state_is_hidden(tmp_path):
    first = Trackers(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        first.log({"loss": float(step)}, step)
    first.close()
    again = Trackers(tmp_path, tensorboard=True, step=2)
    again.log({"loss": 20.0}, 2)
    again.close()
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 1.0), (2, 20.0)]}


def test_wandb_goes_on_under_the_same_name(tmp_path, monkeypatch):
    begun, logged = [], []
    run = SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)), finish=lambda: logged.append("end"))
    package = SimpleNamespace(init=lambda **options: begun.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", package)
    for step in (1, 2):
        tracker = Trackers(tmp_path / "vit", wandb="project", settings={"lr": 0.1}, step=step)
        tracker.log({"loss": 1.0}, step)
        tracker.close()
    assert begun[0] == begun[1]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("project", "vit", "allow")
    assert logged == [({"loss": 1.0}, 1), "end", ({"loss": 1.0}, 2), "end"]


@pytest.mark.parametrize("flag", ["tensorboard", "wandb"])
def test_a_package_that_is_missing(tmp_path, monkeypatch, flag):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(OptionError, match=f"--log-{flag}: expected {flag}, found it not installed"):
        Trackers(tmp_path, **{flag: True if flag == "tensorboard" else "project"})


def test_without_them_nothing_is_written(tmp_path):
    tracker = Trackers(tmp_path)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert not list(tmp_path.iterdir())
