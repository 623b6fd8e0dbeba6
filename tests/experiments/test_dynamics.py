"""``dynamics`` from folders to files, its accuracies against forwards by hand; evaluated once only."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from helpers.folders import few_digits
from helpers.models import small_vit

from ns_easyrobust.cli import main as cli
from ns_easyrobust.data import open_image_folder
from ns_easyrobust.experiments import dynamics
from ns_easyrobust.models.checkpoint_save import save_model

SUITES = "--suite val --input-size 32 --crop-pct 1"


@pytest.fixture
def folders(tmp_path, digits_dir):
    """Two runs from one start, whose weights after 2 updates are known models', and images to evaluate them on."""
    few_digits(digits_dir, tmp_path / "digits", 60)
    save_model(small_vit(seed=5), tmp_path / "start.pth", arch="vit_micro_patch8_32")
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        save_model(small_vit(seed=seed), folder / "checkpoint-2.pth.tar", arch="vit_micro_patch8_32")
        flags = {"seed": 0, "initial_checkpoint": str(tmp_path / "start.pth"), "ns_eps": 0.03}
        (folder / "args.yaml").write_text(yaml.safe_dump(flags))
    (tmp_path / "run1" / "noise.csv").write_text(
        "step,norm,mse_probability,stopped,held_out_mse_probability,converged\n0,3,0.02,True,0.01,True\n"
    )
    return tmp_path


def accuracy(seed, digits_dir):
    """In percent."""
    samples = open_image_folder(digits_dir / "val").samples
    pixels = torch.stack([_pixels(path) for path, _ in samples])
    with torch.no_grad():
        guesses = small_vit(seed=seed).eval()(pixels).argmax(1)
    return 100 * float((guesses == torch.tensor([label for _, label in samples])).double().mean())


def _pixels(path):
    import numpy as np
    from PIL import Image

    return torch.tensor(np.asarray(Image.open(path).convert("RGB")) / 255, dtype=torch.float32).permute(2, 0, 1)


def test_the_start_and_each_checkpoint_are_evaluated_once(folders, monkeypatch, capsys, draw_no_more):
    draw_no_more()
    words = ["experiment", "dynamics", "--runs", f"none={folders}/run0", f"ns={folders}/run1", "-o", f"{folders}/out"]
    words += ["--data-dir", f"{folders}/digits", "--device", "cpu", "-j", "0", "--benchmark", SUITES]
    assert cli.main(words) == 0
    assert "finetuning alone" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folders / "out" / "dynamics.jsonl").read_text().splitlines()]
    found = {line.get("label", "start"): line["columns"] for line in lines if "columns" in line}
    for label, seed in (("start", 5), ("none", 0), ("ns", 1)):
        (column,) = found[label]
        assert (column["group"], column["n"]) == ("clean", 60)
        assert column["value"] == pytest.approx(accuracy(seed, folders / "digits"))
    assert len({column["value"] for (column,) in found.values()}) > 1
    assert next(line for line in lines if line.get("label") == "ns" and line["kind"] == "run")["norm"] == [3.0]
    assert {path.name for path in (folders / "out").iterdir()} >= {"dynamics.csv", "dynamics.md", "dynamics.png"}

    monkeypatch.setattr(dynamics.evaluation, "evaluate_checkpoint", None)
    assert cli.main(words) == 0  # nothing is measured again
    assert cli.main([*words[:-1], f"{SUITES} -b 7"]) == 2
    assert "benchmark: expected" in capsys.readouterr().err


def test_flags_that_the_experiment_sets_and_unknown_ones_are_refused(folders, digits_dir, capsys):
    words = ["experiment", "dynamics", "--runs", f"none={folders}/run0", "-o", f"{folders}/out", "--data-dir"]
    assert cli.main([*words, str(digits_dir), "--benchmark", "--label x"]) == 2
    assert "--benchmark: expected flags that are not this experiment's own, found --label" in capsys.readouterr().err
    assert cli.main([*words, str(digits_dir), "--benchmark", "--suite nothing"]) == 2
    assert cli.main([*words, str(folders / "gone"), "--benchmark", SUITES]) == 2
    assert not (folders / "out" / "dynamics.jsonl").exists()


def test_quotes_that_do_not_close_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.yaml").write_text("{seed: 0, initial_checkpoint: run/checkpoint-1.pth.tar}\n")
    (tmp_path / "run" / "checkpoint-1.pth.tar").touch()
    words = ["experiment", "dynamics", "--runs", "a=run", "--data-dir", "."]
    assert cli.main([*words, "--benchmark", "--suite 'val"]) == 2
    assert '--benchmark: expected words, found "--suite \'val" (No closing quotation)' in capsys.readouterr().err
