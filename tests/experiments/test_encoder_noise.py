"""Figure 3 through the command line: numbers derived again by hand, gone on with, and refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.models import forward_by_hand
from scipy import stats

from ns_easyrobust.cli import main as cli
from ns_easyrobust.data import Preprocessing
from ns_easyrobust.experiments.image_set import open_images
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace.noise import Noise


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_model(trained, tmp_path / "trained.pth.tar", arch="vit_micro_patch8_32")
    return (
        f"experiment encoder-noise --ckpt-path trained.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 50 "
        "--synthesis-images 32 --lambdas 1 0.3 --steps 25 --minibatch 8 --step-length 0.2 --limit 0.3 --seed 3 -j 0 "
        "--device cpu -o out"
    ).split()


def read(tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "out" / "encoder-noise.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("kind") == "noise"]


def test_its_numbers_are_those_of_the_noise_that_it_kept_and_of_its_permutation(
    command, tmp_path, trained, digits_dir, capsys
):
    assert cli.main(command) == 0
    lines = read(tmp_path)
    assert [(line["strength"], line["noise_seed"]) for line in lines] == [(0.3, 3), (1.0, 3)]
    measured, searched = open_images(digits_dir, Preprocessing(32, 1.0, "bicubic"), 50, 32, 3, 0)
    model = trained.double()
    for line in lines:
        noise = Noise.load(tmp_path / "out" / "encoder-noise-parts" / f"lambda{line['strength']!r}-seed3.pt")
        value = noise.value.double()
        assert value.mean(-1).abs().max() < 1e-5
        assert line["norm"] == pytest.approx(float(value.norm()), rel=1e-6)
        assert line["start_norm"] == pytest.approx(0.3 / 3**0.5 * 32, rel=0.05)
        with torch.no_grad():
            clean, noisy = (forward_by_hand(model, measured.pixels.double(), each) for each in (0 * value, value))
        distance = (noisy.softmax(-1) - clean.softmax(-1)).square().sum(-1).numpy()
        low, high = stats.t.interval(0.95, 49, distance.mean(), stats.sem(distance))
        assert line["learned"]["mse_probability"] == pytest.approx([distance.mean(), low, high], rel=1e-3)
        assert line["learned"]["unchanged"] == int((clean.argmax(-1) == noisy.argmax(-1)).sum())
        assert line["learned"]["logit_distance"][0] == pytest.approx(
            float((noisy - clean).norm(dim=-1).mean()), rel=1e-3
        )
        for control in (line["permuted"], line["within"]):
            lost = line["learned"]["unchanged"] - control["unchanged"]
            assert control["only_learned"] - control["only_control"] == lost
            assert control["logit_distance"][0] > line["learned"]["logit_distance"][0]
        assert line["within"]["logit_distance"] != line["permuted"]["logit_distance"]

        def distance_at(scale: float, value=value) -> float:
            pair = [forward_by_hand(model, searched.pixels.double(), each) for each in (0 * value, scale * value)]
            return float((pair[1] - pair[0]).norm(dim=-1).mean().detach())

        assert line["distance"] == pytest.approx(distance_at(1.0), rel=1e-3)
        slope = (distance_at(1 + 1e-4) - distance_at(1 - 1e-4)) / 2e-4
        assert line["radial"] == pytest.approx(slope, rel=1e-2)
    assert (tmp_path / "out" / "encoder-noise.png").stat().st_size > 10_000
    assert len((tmp_path / "out" / "encoder-noise.csv").read_text().splitlines()) == 3
    assert "<v, grad J>" in (tmp_path / "out" / "encoder-noise.md").read_text().replace("\\", "")


def test_more_lambdas_and_seeds_are_added_other_settings_refused_and_force_begins_anew(
    command, tmp_path, monkeypatch, capsys
):
    drawn = "ns_easyrobust.report.encoder_noise.encoder_noise_figure"  # takes longer than the rest
    monkeypatch.setattr(drawn, lambda stream, *rest: stream.write(b"picture"))
    command = [*command, "--steps", "3", "--synthesis-images", "16", "--images", "20"]
    assert cli.main(command) == 0
    before = read(tmp_path)
    assert cli.main([*command, "--lambdas", "0.3", "2", "--seeds", "2"]) == 0
    after = read(tmp_path)
    assert after[:2] == before
    assert [(line["strength"], line["noise_seed"]) for line in after[2:]] == [(0.3, 4), (2.0, 3), (2.0, 4)]
    assert after[2]["norm"] != before[0]["norm"]  # of another start
    capsys.readouterr()
    assert cli.main([*command, "--steps", "4"]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in shown if "steps: expected 3" in line]) == 1
    assert read(tmp_path) == after
    assert cli.main([*command, "--steps", "2", "--lambdas", "1", "--force"]) == 0
    assert len(read(tmp_path)) == 1


def test_wrong_flags_and_folders_are_one_line(command, tmp_path, digits_dir, capsys):
    one = tmp_path / "one"
    for part in ("train", "val"):
        images = sorted((digits_dir / part).rglob("*.png"))[:1]
        (one / part / "0").mkdir(parents=True)
        shutil.copy(images[0], one / part / "0")
    for flags, said in (
        (["--lambdas", "0"], "--lambdas: expected a number"),
        (["--lambdas", "-1"], "expected"),
        (["--lambdas"], "--lambdas: expected at least one argument"),
        (["--input-size", "64"], "64"),
        (["--data-dir", str(one)], "expected two images at least"),
        (["--data-dir", str(tmp_path)], "expected"),
    ):
        capsys.readouterr()
        with_exit = 0
        try:
            with_exit = cli.main([*command, *flags])
        except SystemExit as ended:
            with_exit = ended.code
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert with_exit == 2, flags
        assert said in last, flags
    assert not (tmp_path / "out" / "encoder-noise.jsonl").exists()
