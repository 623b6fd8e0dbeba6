"""Figure 5 through the command line: whole, again, by two processes, and refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.models import forward_by_hand, small_vit
from helpers.processes import torchrun

from ns_easyrobust.cli import main as cli
from ns_easyrobust.data import Preprocessing, open_image_folder, split_indices
from ns_easyrobust.experiments import closure
from ns_easyrobust.experiments.closure_lab import ClosureLab
from ns_easyrobust.experiments.closure_synthesis import synthesize_all
from ns_easyrobust.experiments.image_set import ImageSet
from ns_easyrobust.experiments.inputs import Inputs
from ns_easyrobust.experiments.results import Results
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.noise import Noise


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    """Three noises of a few steps, two pairs on a 3 x 3 grid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    return (
        f"experiment closure --ckpt-path last.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 10 "
        "--synthesis-images 20 --synthesis-batch-size 10 --noises 3 --pairs 2 --grid 3 --alpha-max 1 --limit 0.5 "
        "--max-steps 30 --eigenvalues 20 -b 10 -j 0 --device cpu -o out"
    ).split()


def read(tmp_path, part, **key):
    lines = [json.loads(line) for line in (tmp_path / "out" / "closure.jsonl").read_text().splitlines()[1:]]
    return [line for line in lines if line.get("part") == part and all(line[name] == key[name] for name in key)]


def test_the_grid_is_what_the_model_does_by_hand_and_a_second_call_measures_nothing(
    command, tmp_path, trained, digits_dir, monkeypatch, capsys, draw_no_more
):
    assert cli.main(command) == 0
    protocol = json.loads((tmp_path / "out" / "closure.jsonl").read_text().splitlines()[0])["protocol"]
    assert protocol["alphas"] == [0, 0.5, 1]
    assert protocol["n"] == 10

    folder = open_image_folder(str(digits_dir / "val"), Preprocessing(32, 1.0).transform())
    items = split_indices(range(len(folder)), 10, 42)[0]
    images = torch.stack([folder[item][0] for item in items]).double()
    noises = [
        Noise.load(tmp_path / "out" / "closure-parts" / f"noise-{number:04d}.pt").value.double() for number in range(3)
    ]
    assert not torch.equal(noises[0], noises[1])
    model = trained.double()

    def influence(value: torch.Tensor) -> float:
        with torch.no_grad():
            clean, noisy = (forward_by_hand(model, images, value * on).softmax(1) for on in (0, 1))
        return float((clean - noisy).square().sum(1).mean())

    for number in range(3):
        (own,) = read(tmp_path, "single", kind="nullspace", number=number)
        assert own["influence"] == pytest.approx(influence(noises[number]), rel=1e-3)
        assert own["influences"] == pytest.approx(
            [influence(alpha * noises[number]) for alpha in protocol["alphas"]], rel=1e-3
        )
        for kind in ("random", "permuted"):
            (control,) = read(tmp_path, "single", kind=kind, number=number)
            assert control["influence"] == pytest.approx(own["influence"], rel=0.02)  # equal influence
            assert control["norm"] != pytest.approx(own["norm"], rel=1e-3)
    for pair in read(tmp_path, "pair", kind="nullspace"):
        first, second = (noises[number] for number in pair["numbers"])
        expected = [
            [influence(one * first + other * second) for other in protocol["alphas"]] for one in protocol["alphas"]
        ]
        np.testing.assert_allclose(pair["grid"], expected, rtol=1e-3, atol=1e-9)
        assert pair["line"] == pytest.approx(
            [influence(share * first + (1 - share) * second) for share in protocol["shares"]], rel=1e-3
        )
    assert len(read(tmp_path, "pair")) == 6
    (spectrum,) = read(tmp_path, "spectrum")
    assert (spectrum["dimension"], spectrum["rank"], len(spectrum["values"])) == (1024, 90, 20)

    text = (tmp_path / "out" / "closure.md").read_text()
    assert "The paper reports the mean influence of alpha v, and that it is less than alpha eps for alpha < 1" in text
    assert (tmp_path / "out" / "closure.png").stat().st_size > 20_000
    before = (tmp_path / "out" / "closure.jsonl").read_text()
    monkeypatch.setattr("ns_easyrobust.nullspace.synthesize", None)
    monkeypatch.setattr("ns_easyrobust.nullspace.InfluenceProbe", None)
    draw_no_more()
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "closure.jsonl").read_text() == before
    capsys.readouterr()
    assert cli.main([*command, "--eps", "0.1"]) == 2
    assert "eps: expected 0.033, with which out was begun, found 0.1" in capsys.readouterr().err


def test_a_noise_in_others_hands_is_left_to_them_by_other_ranks_and_a_noise_left_behind_is_made(
    tmp_path, trained, digits, monkeypatch
):
    made = []

    def quick(model, batches, config, generator):
        made.append(next(batches).shape[0])
        return Noise(torch.randn(1, 16, 64, generator=generator), 0.0, 1, True, None, (), config)

    monkeypatch.setattr("ns_easyrobust.nullspace.synthesize", quick)
    images = ImageSet(digits[0][:20], "", "")
    inputs = Inputs(trained, torch.device("cpu"), images, images, {})
    wanted = {"count": 3, "batch_size": 7, "seed": 0}
    monkeypatch.setenv("RANK", "1")
    code = (
        "import sys, time; from pathlib import Path; from ns_easyrobust.utils import FileLock\n"
        f"with FileLock(Path({str(tmp_path)!r}) / 'noise-0001.lock', 'this noise'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert synthesize_all(inputs, tmp_path, NoiseConfig(), **wanted) == []
        assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["noise-0000.pt", "noise-0002.pt"]
        other.kill()  # it dies with its noise unmade
    monkeypatch.setenv("RANK", "0")
    noises = synthesize_all(inputs, tmp_path, NoiseConfig(), **wanted)
    assert made == [7, 7, 7]
    assert len({float(noise.value.sum()) for noise in noises}) == 3


def test_noise_is_measured_as_it_was_found_where_a_model_reads_its_mean(tmp_path, caplog):
    """A ViT without its first LayerNorm: all that is all-ones of the noise counts."""
    model = small_vit().eval()
    model[1].blocks[0].norm1 = torch.nn.Identity()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32, generator=generator)
    images = ImageSet(pixels, "", "")
    inputs = Inputs(model, torch.device("cpu"), images, images, {"batch_size": 4})
    reader = closure._reader(inputs)
    assert reader == {"reader": "1.blocks.0.attn (Attention)"}
    assert "Noise and its controls are not centred per token" in caplog.text
    results = Results(tmp_path, "closure")
    results.begin({"eps": 0.033, **reader}, "cpu")
    value = torch.randn(1, 16, 64, generator=generator) + 3
    noise = Noise(value, 0.0, 1, True, None, (), NoiseConfig())
    lab = ClosureLab(inputs, results, [noise], [0.0, 1.0], 0)
    own = lab._single("nullspace", 0)
    with torch.no_grad():
        clean, noisy = (forward_by_hand(model, pixels, value * on).softmax(1) for on in (0, 1))
    assert own["influence"] == pytest.approx(float((clean - noisy).square().sum(1).mean()), rel=1e-3)
    assert own["norm"] == pytest.approx(float(value.norm()), rel=1e-5)
    assert float(lab.direction("permuted", 0).mean()) == pytest.approx(float(value.mean() / value.norm()), rel=1e-4)
    model[1].blocks[0].norm1 = torch.nn.LayerNorm(64)
    assert closure._reader(inputs) == {}


@pytest.mark.stress
def test_two_processes_find_the_noises_of_one(command, tmp_path):
    done = torchrun(2, tmp_path, *command[:-1], "two")
    assert done.returncode == 0, done.stderr
    assert cli.main(command) == 0
    for number in range(3):
        one, two = (
            Noise.load(tmp_path / folder / "closure-parts" / f"noise-{number:04d}.pt") for folder in ("out", "two")
        )
        torch.testing.assert_close(one.value, two.value)
    one, two = (
        [json.loads(line) for line in (tmp_path / folder / "closure.jsonl").read_text().splitlines()[1:]]
        for folder in ("out", "two")
    )
    assert [line.get("part") for line in one] == [line.get("part") for line in two]  # the last says how long
    assert not list((tmp_path / "two" / "closure-parts").glob("*.lock"))
    again = torchrun(2, tmp_path, *command[:-1], "two", "--eps", "0.1")
    assert again.returncode != 0
    assert "eps: expected 0.033, with which two was begun, found 0.1" in again.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--pairs", "4"], "pairs: expected 1 to 3, as 3 noises have so many, found 4. Synthesize more noises."),
        (["--noises", "1"], "argument --noises: expected a whole number >= 2, found 1"),
        (["--grid", "1"], "argument --grid: expected a whole number >= 2, found 1"),
        (["--alpha-max", "2"], "--grid 3, --alpha-max 2: expected an alpha between 0 and 1, found steps of 1 from 0."),
        (["--alpha-max", "-1"], "argument --alpha-max: expected a number between"),
        (["--alpha-max", "inf"], "argument --alpha-max: expected a number between"),
        (["--eps", "0"], "argument --eps: expected a number between"),
        (["--input-size", "64"], "--input-size 64: expected 32, the size vit_micro_patch8_32 is built for."),
        (["--ckpt-path", "one.pth.tar"], "one.pth.tar: expected two classes or more, found one"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--solver", "nobody"], "argument --solver: invalid choice"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_measured(command, tmp_path, capsys, words, line):
    if "one.pth.tar" in words:
        save_model(small_vit(1), tmp_path / "one.pth.tar", arch="vit_micro_patch8_32")
    assert cli.main([*command, *words]) == 2
    said = [one for one in capsys.readouterr().err.splitlines() if one.startswith("ns-easyrobust")]
    assert len(said) == 1
    assert line in said[0]
    assert not (tmp_path / "out" / "closure.jsonl").exists()
