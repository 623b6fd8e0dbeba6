from __future__ import annotations

import argparse
import csv
import math
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers.checkpoints import easyrobust_benchmark_model
from helpers.models import small_vit
from timm.utils import ModelEmaV2

import ns_easyrobust.training.trainer as module
from ns_easyrobust.data.transforms import Preprocessing
from ns_easyrobust.errors import DataError, ModelError, NoiseError, OptionError, OutputError, TrainingError
from ns_easyrobust.evaluation.easyrobust_api import evaluate_imagenet_val
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.checkpoints import read_checkpoint
from ns_easyrobust.models.vit import unwrap
from ns_easyrobust.nullspace.noise import Noise
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.trainer import train


@pytest.fixture
def flags(digits_dir, tmp_path):
    return [
        *("--model", "vit_micro_patch8_32", "--num-classes", "10", "--data_dir", str(digits_dir), "-j", "0"),
        *("--batch-size", "32", "--epoch-steps", "4", "--epochs", "2", "--hflip", "0", "--lr", "1e-3"),
        *("--output", str(tmp_path), "--experiment", "run", "--device", "cpu"),
    ]


def rows(folder):
    with open(folder / "summary.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_leaves_what_timm_leaves_and_learns(flags):
    folder = train(parse_args([*flags, "--epoch-steps", "55", "--epochs", "3", "--no-aug", "--lr", "3e-3"]))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["args.yaml", "last.pth.tar", "model_best.pth.tar", "state.pth.tar", "summary.csv"]
    summary = rows(folder)
    assert [row["epoch"] for row in summary] == ["0", "1", "2"]
    assert float(summary[-1]["eval_top1"]) > 25  # chance is 10
    assert float(summary[-1]["train_loss"]) < float(summary[0]["train_loss"])
    settings = yaml.safe_load((folder / "args.yaml").read_text())
    assert settings["epoch_steps"] == 55
    last = read_checkpoint(folder / "last.pth.tar")
    assert last.arch == "vit_micro_patch8_32"
    assert last.metadata["selected_on"] == "train-holdout"
    assert last.metadata["metric"] == pytest.approx(float(summary[-1]["eval_holdout_top1"]))
    best = max(range(3), key=lambda i: float(summary[i]["eval_holdout_top1"]))
    assert read_checkpoint(folder / "model_best.pth.tar").metadata["epoch"] == best


def test_nullspace_adds_its_companion_loss_and_keeps_its_history(flags):
    noisy = [*flags, "--aug", "nullspace", "--ns-interval", "3", "--ns-max-steps", "5", "--ns-eps", "1e-6"]
    folder = train(parse_args(noisy))
    with open(folder / "noise.csv", newline="") as stream:
        history = list(csv.DictReader(stream))
    assert [(row["step"], row["synthesis_steps"]) for row in history] == [("0", "5"), ("3", "5"), ("6", "5")]
    noise = Noise.load(folder / "noise.pt")
    assert noise.norm == pytest.approx(float(history[-1]["norm"]))
    assert float(rows(folder)[-1]["train_noise_norm"]) == pytest.approx(noise.norm)
    assert float(rows(folder)[-1]["train_noisy_loss"]) > 0
    plain = train(parse_args([*flags, "--experiment", "plain"]))
    states = [torch.load(f / "last.pth.tar", weights_only=True)["state_dict"] for f in (folder, plain)]
    assert not torch.equal(states[0]["1.head.weight"], states[1]["1.head.weight"])


def test_equal_runs_write_equal_files_for_any_number_of_workers(flags, digits_dir, tmp_path):
    more = ["--aug", "nullspace", "--ns-max-steps", "3", "--mixup", "0.8", "--drop-path", "0.1", "--reprob", "0.5"]
    more += ["--aa", "rand-m9-mstd0.5-inc1", "--model-ema"]
    runs = []
    for workers in ("0", "2"):
        place = tmp_path / f"place-{workers}"
        place.mkdir()
        (place / "data").symlink_to(digits_dir)
        save_model(small_vit(), place / "start.pth.tar")
        elsewhere = ["--data-dir", str(place / "data"), "--initial-checkpoint", str(place / "start.pth.tar")]
        runs.append(train(parse_args([*flags, *more, *elsewhere, "--experiment", workers, "-j", workers])))
    for name in ("last.pth.tar", "model_best.pth.tar", "noise.pt", "noise.csv", "summary.csv"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name


def test_raw_and_ema_each_start_from_their_own(flags, tmp_path):
    raw, average = small_vit(seed=1), small_vit(seed=2)
    save_model(raw, tmp_path / "start.pth.tar", ema=average)
    start = ["--initial-checkpoint", str(tmp_path / "start.pth.tar"), "--lr", "0", "--min-lr", "0", "--opt", "sgd"]
    folder = train(parse_args([*flags, *start, "--model-ema", "--model-ema-decay", "0.5"]))
    saved = read_checkpoint(folder / "last.pth.tar")
    assert torch.equal(saved.weights().state["head.weight"], raw[1].head.weight)
    by_hand = ModelEmaV2(average, decay=0.5)
    for _ in range(8):
        by_hand.update(raw)
    torch.testing.assert_close(saved.weights(ema=True).state["head.weight"], by_hand.module[1].head.weight)


def test_max_steps_and_rounds(flags):
    folder = train(parse_args([*flags, "--max-steps", "6", "--aug", "random", "--ns-interval", "2"]))
    assert read_checkpoint(folder / "last.pth.tar").metadata["step"] == 6
    with open(folder / "noise.csv", newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["0", "2", "4"]


@pytest.mark.parametrize("select", ["val", "last"])
def test_selection(flags, select):
    folder = train(parse_args([*flags, "--select", select]))
    assert "eval_holdout_top1" not in rows(folder)[0]
    assert read_checkpoint(folder / "model_best.pth.tar").metadata["selected_on"] == select
    if select == "last":
        assert read_checkpoint(folder / "model_best.pth.tar").metadata["epoch"] == 1


def test_the_authors_decayed_tokens_are_a_flag(flags):
    still = ["--opt", "momentum", "--momentum", "0", "--lr", "1", "--weight-decay", "0.5", "--clip-grad", "1e-12"]

    def head_and_position(*more):
        folder = train(parse_args([*flags, *still, "--max-steps", "1", *more]))
        state = read_checkpoint(folder / "last.pth.tar").weights().state
        return state["head.weight"], state["pos_embed"]

    head, position = head_and_position("--experiment", "a")
    decayed_head, decayed_position = head_and_position("--experiment", "b", "--decay-tokens")
    torch.testing.assert_close(decayed_position, position / 2, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(decayed_head, head)


def test_adaptive_clipping_does_not_reach_the_classifier(flags):
    """One step of plain descent whose clipped gradients are next to nothing."""
    still = ["--opt", "momentum", "--momentum", "0", "--lr", "1", "--weight-decay", "0", "--max-steps", "1"]
    folder = train(parse_args([*flags, *still, "--clip-grad", "1e-12", "--clip-mode", "agc", "--seed", "0"]))
    before, after = small_vit()[1].state_dict(), read_checkpoint(folder / "last.pth.tar").weights().state
    moved = {name for name, value in after.items() if not torch.allclose(value, before[name], atol=1e-6)}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_reaches_both_branches_and_the_scaler(flags, dtype, monkeypatch):
    seen, scales = [], []

    def watched(run, batches):
        handle = unwrap(run.model)[1].head.register_forward_hook(lambda m, args, output: seen.append(output.dtype))
        result = original(run, batches)
        handle.remove()
        scales.append(run.scaler.is_enabled())
        return result

    original = module._train_step
    monkeypatch.setattr(module, "_train_step", watched)
    amp = ["--amp", "--amp-dtype", dtype, "--aug", "random", "--ns-interval", "100", "--ns-max-steps", "1"]
    folder = train(parse_args([*flags, *amp, "--max-steps", "3"]))
    low = getattr(torch, dtype)
    assert seen[-2:] == [low, low]
    assert scales == [dtype == "float16"] * 3
    assert math.isfinite(float(rows(folder)[-1]["train_loss"]))


@pytest.mark.stress
def test_looking_does_not_change_the_run(flags):
    states = []
    for interval in ("1", "2"):
        more = ["--drop-path", "0.3", "--mixup", "0.5", "--val-interval", interval, "--experiment", interval]
        folder = train(parse_args([*flags, *more, "--aug", "random"]))
        states.append(torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_every_epoch_saves_its_weights_and_noise(flags, monkeypatch):
    def stopped(run, batches):
        if run.at.step == 4:
            raise KeyboardInterrupt
        return original(run, batches)

    original = module._train_step
    monkeypatch.setattr(module, "_train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(parse_args([*flags, "--val-interval", "100", "--aug", "random", "--ns-interval", "4"]))
    folder = Path(flags[flags.index("--output") + 1]) / "run"
    assert read_checkpoint(folder / "last.pth.tar").metadata["step"] == 4
    assert (folder / "noise.csv").exists()
    assert not (folder / "summary.csv").exists()


def test_weights_that_evaluate_to_nan_are_not_saved(flags):
    with pytest.raises(TrainingError, match=r"Weights saved before that: .*state.pth.tar"):
        train(argparse.Namespace(**vars(parse_args([*flags, "--max-steps", "1"])) | {"lr": 1e30}))


def test_saved_checkpoints_load_in_easyrobusts_benchmark(flags, digits_dir):
    """Acceptance: raw and EMA, with torch.load's defaults, at the same accuracy as in summary.csv."""
    more = ["--model-ema", "--model-ema-decay", "0.9", "--no-aug", "--lr", "3e-3", "--epoch-steps", "60"]
    folder = train(parse_args([*flags, *more, "--select", "val"]))
    raw, ema = (
        easyrobust_benchmark_model(folder / "last.pth.tar", use_ema, "vit_micro_patch8_32", 10)
        for use_ema in (False, True)
    )
    top1 = evaluate_imagenet_val(ema, digits_dir / "val", 100, Preprocessing(32, 1.0).transform(), workers=0)
    assert top1 == pytest.approx(float(rows(folder)[-1]["eval_top1"]), abs=0.5)
    assert 15 < top1 < 100
    assert not torch.equal(raw[1].head.weight, ema[1].head.weight)


def test_nan_stops_with_the_step_and_the_last_good_weights(flags, monkeypatch):
    steps = []

    def poisoned(run, batches):
        steps.append(len(steps))
        if len(steps) == 6:
            batches = [(images * math.nan, target) for images, target in batches]
        return original(run, batches)

    original = module._train_step
    monkeypatch.setattr(module, "_train_step", poisoned)
    with pytest.raises(TrainingError, match=r"step 5: expected a finite loss, found clean nan.*last\.pth\.tar"):
        train(parse_args(flags))


def test_a_folder_with_a_run_is_not_touched(flags, tmp_path):
    folder = train(parse_args(flags))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=r"already holds a run.*Choose another --experiment"):
        train(parse_args(flags))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_settings_come_from_yaml_and_the_command_line_wins(tmp_path, digits_dir):
    (tmp_path / "recipe.yaml").write_text(
        f"model: vit_micro_patch8_32\ndata-dir: {digits_dir}\nlr: 1e-3\nns_limit: 2\nscale: [0.5, 1.0]\naug: random\n"
    )
    args = parse_args(["-c", str(tmp_path / "recipe.yaml"), "--ns-limit", "5"])
    assert (args.lr, args.ns_limit, args.scale, args.aug, args.batch_size) == (1e-3, 5.0, [0.5, 1.0], "random", 128)


@pytest.mark.parametrize("wrong", [["--opt", "best"], ["--aa", "best"]])
def test_names_that_timm_does_not_know(flags, wrong):
    with pytest.raises(OptionError, match="of timm's"):
        train(parse_args([*flags, *wrong]))


def test_switches_of_a_recipe_can_be_undone(tmp_path, flags):
    (tmp_path / "recipe.yaml").write_text("amp: true\nmodel_ema: false\nno_aug: true\n")
    recipe = ["-c", str(tmp_path / "recipe.yaml"), *flags]
    args = parse_args(recipe)
    assert (args.amp, args.model_ema, args.no_aug) == (True, False, True)
    args = parse_args([*recipe, "--no-amp", "--model-ema", "-j4", "-b64"])
    assert (args.amp, args.model_ema, args.workers, args.batch_size) == (False, True, 4, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "found lerning_rate"),
        ("[1, 2]", "found a list"),
        ("a: [", "no YAML, line 1"),
        ("aug: best", "best"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(OptionError, match=message):
        parse_args(["-c", str(tmp_path / "recipe.yaml"), "--model", "x", "--data-dir", "y"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["-b", "33", "--mixup", "1"], ["-vb", "0"], ["--sched", "plateau"], ["--lr", "nan"], ["--seed", "-1"],
        ["--opt-betas"], ["--scale", "2", "3"], ["--smoothing", "1.5"], ["--scale", "1", "0.5"],
        ["--crop-pct", "0"], ["--decay-epochs", "0"], ["--lr", "1e38"], ["--smoothing", "1"], ["--drop", "1"],
        ["--drop-path", "1"], ["--model-ema-decay", "1"], ["--momentum", "1"], ["--clip-grad", "0"],
        ["--color-jitter", "1e9"], ["--ratio", "0.5", "1e9"], ["--crop-pct", "87.5"], ["--recount", "1000000000"],
        ["--img-size", "1000000000"], ["--epochs", "1000000000000"], ["--mixup", "1e300"], ["-j", "1000000"],
        ["--weight-decay", "1e9"], ["--opt-eps", "1e9"], ["--warmup-lr", "1e9"], ["--experiment", "a\0b"],
        ["--ns-interval", "0"],
        ["--epochs", "0"], ["--max-steps", "-1"], ["--holdout", "2"], ["--mean", "0.5"], ["--aug", "best"],
        ["--pretrained", "--initial-checkpoint", "x"], ["--no-such-flag"], ["--lr", "fast"],
    ],
)  # fmt: skip
def test_bad_flags(flags, wrong):
    with pytest.raises(OptionError):
        parse_args([*flags, *wrong])


def test_gpu_asked_for_and_absent(flags):
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")
    with pytest.raises(OptionError, match="expected a GPU"):
        train(parse_args([*flags, "--device", "cuda"]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--img-size", "1"], "does not take 1 x 1 pixels"),
        (["--cutmix-minmax", "0.5", "0.51"], "differ by a pixel of 32"),
        (["--opt-betas", "0.9"], "--opt adamw: expected an optimizer of timm's and settings that it takes"),
        (["--opt", "foo"], "found: (no such name|Optimizer foo not found)"),  # as each timm says it
        (["--aa", "rand-m9-n999999"], "at most 99 operations"),
        (["--opt", "fusedadam"], "--opt fusedadam: expected an optimizer"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_the_first_step(flags, wrong, message):
    with pytest.raises((OptionError, ModelError), match=message):
        train(parse_args([*flags, *wrong]))
    assert not [path for path in Path(flags[flags.index("--output") + 1]).rglob("*") if path.is_file()]


def test_a_full_memory_is_not_called_a_wrong_image_size(flags, monkeypatch):
    def too_large(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099520016400 bytes")

    monkeypatch.setattr("timm.models.vision_transformer.VisionTransformer.forward", too_large)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train(parse_args(flags))


def test_a_folder_called_validation_is_taken_as_timm_takes_it(flags, digits_dir, tmp_path):
    assert parse_args([*flags, "--val-split", "validation"]).val_split == "val"
    (tmp_path / "validation").symlink_to(digits_dir / "val")
    args = parse_args([*flags, "--data-dir", str(tmp_path), "--val-split", "validation"])
    assert args.val_split == "validation"


@pytest.mark.parametrize("name", ["paper_strong", "paper_weak"])
def test_recipes_are_the_papers_and_run(flags, name, monkeypatch):
    args = parse_args(["-c", name, "--model", "vit_small_patch16_224", "--data-dir", "x"])
    assert (args.ns_limit, args.ns_lr, args.ns_eps, args.ns_max_steps, args.batch_size) == (3, 0.1, 0.03, 3000, 128)
    assert (args.epochs, args.epoch_steps, args.ns_interval, args.lr, args.opt) == (20, 40, 40, 1e-5, "adamw")
    quick = ["--max-steps", "1", "--ns-max-steps", "2", "--epochs", "1"]
    folder = train(parse_args(["-c", name, *flags, *quick]))
    assert (folder / "last.pth.tar").exists()


@pytest.mark.skipif(not timm.__version__.startswith("0."), reason="timm 1.x does not save Swin's position index")
def test_the_ema_of_a_swin_keeps_its_position_index(flags):
    swin = [
        "--model",
        "swin_micro_patch2_32",
        "--model-ema",
        "--model-ema-decay",
        "0.9999",
        "--lr",
        "0",
        "--opt",
        "sgd",
    ]
    folder = train(parse_args([*flags, *swin, "--min-lr", "0", "--max-steps", "3"]))
    saved = read_checkpoint(folder / "last.pth.tar")
    raw, averaged = saved.weights().state, saved.weights(ema=True).state
    indices = [name for name in raw if "relative_position_index" in name]
    assert indices
    assert all(torch.equal(raw[name], averaged[name]) for name in indices)


def test_a_runs_settings_can_be_run_again(flags, tmp_path):
    more = ["--max-steps", "2", "--amp", "--amp-dtype", "bfloat16", "--cutmix-minmax", "0.2", "0.8", "--aug", "random"]
    first = train(parse_args([*flags, *more]))
    again = train(parse_args(["-c", str(first / "args.yaml"), "--experiment", "again"]))
    states = [torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"] for folder in (first, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_out_of_memory_says_which_and_what_to_lower(flags, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("ns_easyrobust.nullspace.synthesize", full)
        with pytest.raises(NoiseError, match=r"synthesis at step 0: .*Lower the loader's batch size"):
            train(parse_args([*flags, "--aug", "nullspace"]))
    monkeypatch.setattr(module, "_train_step", full)
    with pytest.raises(TrainingError, match=r"training at step 0: .*Lower --batch-size \(now 32\).*state.pth.tar"):
        train(parse_args([*flags, "--experiment", "other"]))


@pytest.mark.stress
@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_breaks_in_the_middle_of_an_epoch(flags, digits_dir, tmp_path, caplog, workers):
    for split in ("train", "val"):
        shutil.copytree(digits_dir / split, tmp_path / "data" / split)
    broken = sorted((tmp_path / "data" / "train" / "4").iterdir())[3]
    broken.write_bytes(b"no image")
    flags = [*flags, "--data_dir", str(tmp_path / "data"), "-j", workers, "--epoch-steps", "0", "--epochs", "1"]
    with pytest.raises(DataError, match=rf"{broken.name}: expected an image, found one that cannot be decoded"):
        train(parse_args([*flags, "--select", "last"]))
    flags = [*flags, "--select", "last", "--experiment", "again", "--bad-images", "replace", "--epochs", "2"]
    train(parse_args(flags))
    lines = [line for line in caplog.messages if "unreadable images were replaced so far" in line]
    assert lines == [f"epoch {n}: 1 unreadable images were replaced so far" for n in range(2)]
