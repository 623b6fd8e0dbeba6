"""Bad input through the real command: one line on stderr, exit code 2, nothing overwritten."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.models import small_vit
from PIL import Image

from ns_easyrobust.cli import main as cli
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace.noise import Noise
from ns_easyrobust.utils import FileLock

MODEL = ["--model", "vit_micro_patch8_32", "--num-classes", "10"]


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("it_ran",))


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(work):
    return save_model(small_vit(), work / "good.pth.tar") or work / "good.pth.tar"


def fails(capsys, *words) -> str:
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("ns-easyrobust ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err + captured.out
    return lines[0]


def train(digits_dir, *more):
    return ["train", *MODEL, "--data-dir", digits_dir, "-j", "0", "--output", "out", "--experiment", "x", *more]


def test_no_verb_and_unknown_verb(capsys):
    assert cli.main([]) == 0
    assert "benchmark" in capsys.readouterr().out
    assert cli.main(["traim"]) == 2
    assert "expected a verb (demo, train" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    assert f"ns-easyrobust {verb}" in capsys.readouterr().out


def test_models_that_do_not_fit(capsys, digits_dir, work):
    line = fails(capsys, *train(digits_dir, "--model", "resnet18", "--img-size", "32", "--aug", "nullspace"))
    assert "resnet18" in line or "ResNet has no patch embedding" in line
    assert "vit_micro_patch8_32" in fails(capsys, *train(digits_dir, "--model", "vit_micro_patch8_33"))


def test_wrong_class_count(capsys, digits_dir, work, checkpoint):
    assert "found 10. Pass num_classes=10" in fails(capsys, *train(digits_dir, "--num-classes", "12"))
    line = fails(capsys, *train(digits_dir, "--num-classes", "12", "--initial-checkpoint", checkpoint))
    assert "num_classes=10" in line


def test_broken_data_folders(capsys, digits_dir, work):
    assert "nowhere" in fails(capsys, *train("nowhere"))
    (work / "empty" / "train").mkdir(parents=True)
    assert "found no folders" in fails(capsys, *train("empty"))
    shutil.copytree(digits_dir, "holes")
    shutil.rmtree("holes/train/3")
    os.mkdir("holes/train/3")
    assert "found 1 without: 3" in fails(capsys, *train("holes"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_corrupt_image(capsys, digits_dir, work, workers):
    shutil.copytree(digits_dir, "data")
    for image in (work / "data" / "train" / "5").iterdir():
        image.write_bytes(b"\x89PNG torn")
    line = fails(capsys, *train("data", "-j", workers, "--max-steps", "3"))
    assert "data/train/5/" in line
    assert "cannot be decoded" in line


@pytest.mark.parametrize("kind", ["truncated", "html", "hostile", "other architecture", "missing", "empty"])
def test_bad_checkpoints(capsys, digits_dir, work, checkpoint, kind):
    bad, words = work / "bad.pth.tar", "expected"
    if kind == "truncated":
        bad.write_bytes(checkpoint.read_bytes()[:5000])
    elif kind == "html":
        bad.write_text("<!DOCTYPE html><html>sign in</html>")
        words = "HTML"
    elif kind == "hostile":
        bad.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
        words = "mkdir"
    elif kind == "empty":
        bad.touch()
    elif kind == "other architecture":
        save_model(small_vit(arch="vit_micro_patch4_32"), bad)
    benchmark = ["benchmark", *MODEL, "--ckpt_path", bad, "--data_dir", digits_dir, "--device", "cpu"]
    for command in (train(digits_dir, "--initial-checkpoint", bad), benchmark):
        line = fails(capsys, *command)
        assert words in line
        assert "bad.pth.tar" in line
    assert not (work / "it_ran").exists()
    assert not (work / "results.jsonl").exists()


def test_unwritable_and_used_output(capsys, digits_dir, work, checkpoint):
    (work / "file").write_text("in the way")
    assert "cannot write" in fails(capsys, *train(digits_dir, "--output", "file"))
    (work / "out" / "x").mkdir(parents=True)
    (work / "out" / "x" / "last.pth.tar").write_text("precious")
    assert "already holds a run" in fails(capsys, *train(digits_dir))
    assert (work / "out" / "x" / "last.pth.tar").read_text() == "precious"
    (work / "noise.pt").write_text("precious")
    noise = ["noise", *MODEL, "--ckpt_path", checkpoint, "--data_dir", digits_dir / "train"]
    assert "Pass --overwrite" in fails(capsys, *noise)
    with FileLock(work / ".noise.pt.lock", "this noise"):
        assert f"found process {os.getpid()} on " in fails(capsys, *noise, "--overwrite")
    assert (work / "noise.pt").read_text() == "precious"


def test_a_run_that_diverges(capsys, digits_dir, work):
    line = fails(capsys, *train(digits_dir, "--opt", "sgd", "--lr", "1000", "--max-steps", "30", "-b", "16"))
    assert "expected a finite loss" in line
    assert "Weights saved before that: out/x/state.pth.tar" in line


def test_a_benchmark_that_would_measure_nothing_or_the_wrong_labels(capsys, digits_dir, work, checkpoint):
    words = ["benchmark", *MODEL, "--ckpt_path", checkpoint, "--device", "cpu", "-j", "0", "--input-size", "32"]
    line = fails(capsys, *words, "--data_dir", "nowhere")
    assert "Nothing was evaluated" in line
    shutil.copytree(digits_dir / "imagenet-val", "few/imagenet-val")
    shutil.rmtree("few/imagenet-val/9")
    assert "10 outputs, found 9" in fails(capsys, *words, "--data_dir", "few", "--suite", "val")
    assert "before '=', found 'value'" in fails(capsys, *words, "--data_dir", digits_dir, "--subset", "value=all")
    assert "expected all, first:N" in fails(capsys, *words, "--data_dir", digits_dir, "--subset", "val=few")
    assert "pixels of [0, 1], found 2. Divide it by 255" in fails(
        capsys, *words, "--data_dir", digits_dir, "--epsilon", "2"
    )
    assert not (work / "results.jsonl").exists()
    (work / "notes.txt").write_text("not mine")
    line = fails(capsys, *words, "--data_dir", digits_dir, "--records", "notes.txt", "--ckpt_path", "none")
    assert "notes.txt, line 1: expected a result record, found no JSON" in line
    assert (work / "notes.txt").read_text() == "not mine"


def test_the_image_size_is_the_models_and_another_one_is_refused(capsys, digits_dir, work, checkpoint):
    words = ["benchmark", *MODEL, "--ckpt_path", checkpoint, "--device", "cpu", "-j", "0", "--data_dir", digits_dir]
    assert cli.main([str(word) for word in [*words, "--suite", "val", "--crop-pct", "1"]]) == 0
    assert read_records("results.jsonl")[0].protocol["crop"] == 32
    assert "expected 32, the size vit_micro_patch8_32 is built for" in fails(capsys, *words, "--input-size", "224")
    larger = save_model(small_vit(img_size=48), work / "larger.pth.tar") or work / "larger.pth.tar"
    words = ["benchmark", *MODEL, "--ckpt_path", larger, "--device", "cpu", "-j", "0", "--data_dir", digits_dir]
    words += ["--img-size", "48", "--suite", "val", "fgsm", "--subset", "first:30", "--records", "larger.jsonl"]
    assert cli.main([str(word) for word in words]) == 0
    assert [(r.n, r.protocol["crop"]) for r in read_records("larger.jsonl")] == [(30, 48), (30, 48)]


def test_saved_noise_is_taken_up_again_and_refused_by_another_model(capsys, digits_dir, work, checkpoint):
    common = ["--device", "cpu", "-j", "0", "-b", "16", "--input-size", "32", "--held-out", "16"]
    noise = ["noise", *MODEL, "--ckpt-path", checkpoint, "--data-dir", digits_dir / "train", *common]
    assert cli.main([str(word) for word in [*noise, "--ns-max-steps", "2"]]) == 0
    again = [*noise, "--start", "noise.pt", "--ns-max-steps", "0", "--output", "again.pt"]
    assert cli.main([str(word) for word in again]) == 0
    assert "0 steps, as asked: measured alone; on 16 held-out images" in capsys.readouterr().out
    assert torch.equal(Noise.load("again.pt").value, Noise.load("noise.pt").value)
    told = "noise.pt: expected noise for --ns-block 1, found one for -1. Pass --ns-block -1."
    assert told in fails(capsys, *again, "--overwrite", "--ns-block", "1")
    assert cli.main([str(word) for word in [*again, "--overwrite", "--ns-block", "-1"]]) == 0
    save_model(small_vit(arch="vit_micro_patch4_32"), "other.pth.tar")
    other = ["noise", "--model", "vit_micro_patch4_32", "--num-classes", "10", "--ckpt-path", "other.pth.tar"]
    other += ["--data-dir", digits_dir / "train", *common, "--start", "noise.pt", "--output", "other.pt"]
    assert "expected finite values of shape (1, 64, 192), found shape (1, 16, 64)" in fails(capsys, *other)
    assert not (work / "other.pt").exists()


def test_interrupting_the_demo_is_no_mistake(capsys, work, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("ns_easyrobust.training.train", interrupted)
    monkeypatch.setattr("ns_easyrobust.data.write_digits", lambda root: root)
    assert cli.main(["demo"]) == 130
    assert cli.main(["demo"]) == 130  # into another folder
    assert {path.name for path in (work / "output").iterdir()} == {"demo", "demo-2"}


def test_an_interrupted_benchmark_says_that_it_goes_on(capsys, digits_dir, work, checkpoint, monkeypatch):
    def interrupted(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr("ns_easyrobust.evaluation.checkpoint_run.run_suites", interrupted)
    words = ["benchmark", *MODEL, "--ckpt_path", str(checkpoint), "--data_dir", str(digits_dir), "--device", "cpu"]
    assert cli.main([*words, "--subset", "first:9"]) == 130
    assert "interrupted; the same command goes on where it stopped" in capsys.readouterr().err


def test_a_subset_of_few_classes_is_said(digits_dir, work, checkpoint, caplog):
    words = ["benchmark", *MODEL, "--ckpt_path", str(checkpoint), "--data_dir", str(digits_dir), "--device", "cpu"]
    assert cli.main([*words, "-j", "0", "--suite", "val", "--subset", "val=first:9"]) == 0
    assert "--subset val=first:9: the first folders' images, so of few classes" in caplog.text
    caplog.clear()
    assert cli.main([*words, "-j", "0", "--suite", "val", "--subset", "random:9"]) == 0
    assert "few classes" not in caplog.text


def test_nan_weights(capsys, digits_dir, work):
    model = small_vit()
    model[1].head.weight.data[0, 0] = float("nan")
    torch.save({"state_dict": model.state_dict()}, work / "nan.pth.tar")
    assert "head.weight" in fails(capsys, *train(digits_dir, "--initial-checkpoint", work / "nan.pth.tar"))


def test_benchmark_report_and_noise_do_their_jobs(capsys, digits_dir, work, trained):
    save_model(trained, work / "trained.pth.tar")
    data = ["--data_dir", digits_dir, "--input-size", "32", "--crop-pct", "1", "-j", "0", "-b", "100"]
    common = [*MODEL, "--ckpt_path", work / "trained.pth.tar", "--device", "cpu"]
    words = ["benchmark", *common, *data, "--suite", "val", "fgsm", "--epsilon", "8/255", "--label", "vit"]
    assert cli.main([str(word) for word in words]) == 0
    records = read_records("results.jsonl")
    assert [(r.suite, r.n) for r in records] == [("imagenet-val", 500), ("fgsm", 500)]
    assert records[0].value > 70 > records[1].value
    assert records[0].weights == "state_dict"
    assert cli.main(["report", "results.jsonl", "--output", "report"]) == 0
    assert {"results.md", "results.csv", "results.png"} <= {path.name for path in (work / "report").iterdir()}
    words = ["noise", *common, "--data_dir", digits_dir / "train", "--input-size", "32", "--crop-pct", "1"]
    words += ["-j", "0", "-b", "64", "--ns-max-steps", "40"]
    assert cli.main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "its permutation" in out
    assert "saved to noise.pt" in out
    assert "the largest of 16 tokens holds " in out


def test_the_module_runs_as_a_program(work):
    done = subprocess.run([sys.executable, "-m", "ns_easyrobust", "train"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--data-dir" in done.stderr


def test_underscores_and_dashes_are_both_taken(capsys, work):
    image = Image.new("RGB", (8, 8))
    (work / "d" / "imagenet-val" / "a").mkdir(parents=True)
    image.save(work / "d" / "imagenet-val" / "a" / "0.png")
    for flag in ("--ckpt_path", "--ckpt-path"):
        assert "missing.pth" in fails(capsys, "benchmark", *MODEL, "--data_dir", "d", flag, "missing.pth")
