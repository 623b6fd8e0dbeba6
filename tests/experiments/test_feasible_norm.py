"""Feasible norms before and after, through the command line: whole, interrupted, again, and refused in one line."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from helpers.models import forward_by_hand
from scipy.optimize import brentq

from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.feasible import InfluenceProbe
from ns_easyrobust.nullspace.noise import Noise
from ns_easyrobust.nullspace.objective import NoiseObjective

EPS = 0.03


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    """The words of a small comparison: the start, the start again, and the start with a head of half the weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    take = NoiseObjective.take  # a final radius set on 30 images, not 512, is soon found
    monkeypatch.setattr(NoiseObjective, "take", lambda self, images: take(self, min(images, 30)))
    half = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in half[1].head.parameters():
            parameter.mul_(0.5)
    for name, model in (("start", trained), ("same", trained), ("half", half)):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name / "last.pth.tar", arch="vit_micro_patch8_32")
    value = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(5))
    Noise(value, 0.0, 0, False, held_out=None, trace=(), config=NoiseConfig()).save(tmp_path / "half" / "noise.pt")
    return (
        "experiment feasible-norm --before start/last.pth.tar --after same=same/last.pth.tar half=half/last.pth.tar "
        f"--baseline same --data-dir {digits_dir} --crop-pct 1 --directions 1 --images 30 --synthesis-images 30 -b 30 "
        "--max-steps 2 -j 0 --device cpu -o out"
    ).split()


def read(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "feasible_norm.jsonl").read_text().splitlines()]


def test_an_untouched_model_has_ratio_1_and_half_the_logits_their_own_root(command, tmp_path, trained, capsys):
    assert cli.main(command) == 0
    lines = read(tmp_path)
    norms = {(one["label"], one["kind"], one["direction"]): one["norm"] for one in lines}
    kinds = dict.fromkeys(one["kind"] for one in lines)
    assert {"nullspace", "random", "permuted", "trained on", "own nullspace", "own nullspace, as found"} <= set(kinds)
    assert {one["n"] for one in lines} == {30}
    for (label, kind, direction), norm in norms.items():
        if label == "same":
            assert norm == norms["before", kind, direction]
        elif label == "half":
            assert norm > norms["before", kind, direction]
    assert norms["before", "own nullspace", "0"] == norms["before", "nullspace", "0"]
    assert ("same", "trained on", "half, seed 0") in norms  # the baseline, along the other's noise

    images = pixels_measured(tmp_path, command)
    value = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(5)).double()
    value = value - value.mean(-1, keepdim=True)
    model = trained.double()

    def influence(t: float) -> float:
        with torch.no_grad():
            clean, noisy = (forward_by_hand(model, images, t * value / value.norm() * on) / 2 for on in (0, 1))
        return float((clean.softmax(1) - noisy.softmax(1)).square().sum(1).mean()) - EPS

    found = norms["half", "trained on", "half, seed 0"]
    assert found == pytest.approx(brentq(influence, found / 1.5, found * 1.4, rtol=1e-4), rel=0.005)
    out = capsys.readouterr().out
    assert "same (baseline)" in out
    assert "One seed a method" in out
    assert "| same (baseline) | 1.000 | 1.000 | 1.000 |" in (tmp_path / "out" / "feasible_norm.md").read_text()
    assert (tmp_path / "out" / "feasible_norm.png").stat().st_size > 10_000


def pixels_measured(tmp_path, command):
    """The images that the protocol's digest is of, read by hand: 30 random ones of val/."""
    from ns_easyrobust.data import Preprocessing, open_image_folder, split_indices
    from ns_easyrobust.evaluation import images_digest

    folder = open_image_folder(command[command.index("--data-dir") + 1] + "/val", Preprocessing(32, 1.0).transform())
    items = split_indices(range(len(folder)), 30, 42)[0]
    paths = [folder.samples[item][0].removeprefix(f"{folder.root}/") for item in items]
    assert read(tmp_path)[0]["images"] == images_digest(paths)
    return torch.stack([folder[item][0] for item in items]).double()


@pytest.mark.stress
def test_after_an_interruption_it_goes_on_and_what_is_done_is_not_done_again(command, tmp_path, monkeypatch, capsys):
    command, tests, syntheses = [*command, "--no-own"], [], []
    feasible_norm = InfluenceProbe.feasible_norm

    def quick(model, batches, config, generator):
        syntheses.append(config.solver)
        value = torch.randn(1, 16, 64, generator=generator)
        return Noise(value, 0.0, 1, True, held_out=None, trace=(), config=config)

    def some(self, *args):
        tests.append(args)
        if len(tests) == 3:
            raise KeyboardInterrupt
        return feasible_norm(self, *args)

    monkeypatch.setattr("ns_easyrobust.nullspace.synthesize", quick)
    monkeypatch.setattr("ns_easyrobust.report.feasible_norm_figure", lambda *_: None)
    with monkeypatch.context() as patched:
        patched.setattr(InfluenceProbe, "feasible_norm", some)
        assert cli.main(command) != 0
        assert not (tmp_path / "out" / "feasible_norm.jsonl").exists()
        assert cli.main(command) == 0
        assert len(tests) == 1 + len({(one["weights"], one["direction_sha256"]) for one in read(tmp_path)})
        patched.setattr(InfluenceProbe, "__init__", None)
        parts = (tmp_path / "out" / "feasible_norm.jsonl").read_text()
        assert cli.main(command) == 0
    for path in (tmp_path / "out" / "norms").iterdir():
        path.unlink()
    assert cli.main(command) == 0  # in one go
    assert (tmp_path / "out" / "feasible_norm.jsonl").read_text() == parts
    assert len(syntheses) == len(set(syntheses))
    capsys.readouterr()
    assert cli.main([*command, "--eps", "0.1"]) == 2
    assert "eps: expected 0.03, with which out was begun, found 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--after", "a"], "--after: expected LABEL=CKPT or LABEL=CKPT,CKPT,..., found 'a'"),
        (["--after", "before=same/last.pth.tar"], "--after: expected any label but before, the start's, found it"),
        (["--after", "a=nowhere.pth"], "nowhere.pth"),
        (["--baseline", "nobody"], "--baseline: expected one of same, half, found nobody"),
        (["--study", "out"], "--after LABEL=CKPT ... or --study FOLDER, found both or neither"),
        (["--methods", "same"], "--methods with --study alone"),
        (["--before", "nowhere.pth"], "nowhere.pth"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--images", "1"], "argument --images"),
        (["--eps", "0"], "argument --eps"),
    ],
)
def test_what_is_wrong_is_one_line(command, capsys, words, line):
    assert cli.main([*command, *words]) == 2
    said = [one for one in capsys.readouterr().err.splitlines() if one.startswith("ns-easyrobust")]
    assert len(said) == 1
    assert line in said[0]
