"""Watermarks through the command line: what the model sees, folders of marked images, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ns_easyrobust.cli import main as cli
from ns_easyrobust.data import read_pixels
from ns_easyrobust.experiments.watermark_measure import Halves
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace import patchify
from ns_easyrobust.report import WatermarkKinds


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save("photo.png")
    return (
        f"experiment watermark --ckpt-path last.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 24 -b 4 -j 0 "
        "--text N --other-text V --marked-images 6 --false-positive-rate 0.1 --photographs photo.png --device cpu "
        "-o out"
    ).split()


def class_folders(root):
    """Four images in two class folders."""
    for number in range(4):
        folder = root / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(60, 196, (40, 36, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"image{number}.jpg")


def test_the_model_does_not_see_the_mark_and_the_detector_does(command, tmp_path, monkeypatch, capsys, draw_no_more):
    draw_no_more()
    assert cli.main(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "watermark.jsonl").read_text().splitlines()]
    kinds = WatermarkKinds
    batches: dict = {}
    for line in lines:
        if "batch" in line:
            batches.setdefault(line["kind"], []).append(line)
    assert all(sum(line["n"] for line in own) == 6 for own in batches.values())
    confidence = {kind: max(max(line.get("confidence", [0])) for line in own) for kind, own in batches.items()}
    for kind in (kinds.LEAST_SQUARES, kinds.VALID):
        assert confidence[kind] < 1e-5
        assert min(value for line in batches[kind] for value in line["inside"]) > 0.02
        assert sum(line["unchanged"] for line in batches[kind]) == 6
    assert confidence["JPEG 50"] > 1e-3 > confidence[kinds.LATTICE]
    assert max(value for line in batches[kinds.VALID] for value in line["residual"]) < 1e-2
    assert all(share < 1 for line in batches[kinds.SHARES] for share in line["emboss"])
    marked, other = (
        np.mean([score for line in batches[kind] for score in line["scores"]]) for kind in (kinds.VALID, kinds.OTHER)
    )
    unmarked = [score for line in lines if "unmarked" in line for score in line["scores"]]
    assert len(unmarked) == 24
    assert marked > np.mean(unmarked) + 1
    assert marked > other
    text = " ".join(capsys.readouterr().out.split())
    assert "least squares keeps 6 of 6 predictions" in text
    before = (tmp_path / "out" / "watermark.jsonl").read_bytes()
    monkeypatch.setattr("ns_easyrobust.experiments.watermark.marked_lines", None)
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "watermark.jsonl").read_bytes() == before


@pytest.mark.parametrize(("image_format", "suffix", "most"), [("float", ".npy", 1e-5), ("png", ".png", 0.05)])
def test_folders_are_marked_and_searched(
    command, tmp_path, trained, image_format, suffix, most, monkeypatch, capsys, draw_no_more
):
    draw_no_more()
    class_folders(tmp_path / "photos")
    monkeypatch.setattr("ns_easyrobust.experiments.watermark.WatermarkExperiment._measure_all", lambda *args: None)
    monkeypatch.setattr("ns_easyrobust.experiments.watermark.WatermarkExperiment.report", lambda *args: _NoReport())
    words = [*command, "--data-dir", "photos", "--images", "4", "--false-positive-rate", "0.4", "--marked-dir", "m"]
    words += ["--marked-format", image_format]
    assert cli.main(words) == 0
    assert "marked images: m, 4 written, 4 in all" in capsys.readouterr().out
    names = sorted(path.relative_to(tmp_path / "m").as_posix() for path in (tmp_path / "m").rglob(f"*{suffix}"))
    assert names == [f"class{number % 2}/image{number}{suffix}" for number in (0, 2, 1, 3)]
    resized = Image.open("photos/class0/image0.jpg").convert("RGB")
    from ns_easyrobust.data import Preprocessing

    image = Preprocessing(32, 1.0, "bicubic").transform()(resized).double()
    change = read_pixels(tmp_path / "m" / names[0]) - image
    assert float(change.abs().max()) > 0.05
    scaled = change[None] / trained[0].std.double().view(1, 3, 1, 1)
    weight = trained[1].patch_embed.proj.weight.detach().double().flatten(1)
    assert float((patchify(scaled, 8, 192) @ weight.T).abs().max()) < most
    times = [(tmp_path / "m" / name).stat().st_mtime_ns for name in names]
    (tmp_path / "m" / names[3]).unlink()
    assert cli.main([*words, "--detect", "m"]) == 0
    text = capsys.readouterr().out
    assert "1 written, 4 in all" in text
    assert "the mark was found in 4 of 4 images of m: out/detected.csv" in text
    assert [(tmp_path / "m" / name).stat().st_mtime_ns for name in names[:3]] == times[:3]
    rows = list(csv.DictReader((tmp_path / "out" / "detected.csv").open()))
    assert [row["image"] for row in rows] == sorted(names)
    assert cli.main([*words, "--text", "V", "--other-text", "N", "-o", "other"]) == 2
    assert "found another mark, model or format" in capsys.readouterr().err.splitlines()[-1]


class _NoReport:
    notes: tuple[str, ...] = ()

    def __new__(cls):
        from ns_easyrobust.report import FigureReport, Sheet

        return FigureReport("none", [("", Sheet([], []))], [], [["a"]], lambda stream: None)


def test_halves_judge_each_other():
    halves = Halves(10, seed=3)
    assert sorted(halves.order.tolist()) == list(range(10))
    assert int(halves.half.sum()) == 5
    halves.detectors = [lambda images: images[:, 0] * 1.0, lambda images: images[:, 0] * 100.0]
    halves.thresholds = [5.0, 500.0]
    values = torch.arange(10.0).double()[:, None]
    scores, found = halves.scores(torch.arange(10), values)
    of_other = torch.where(halves.half == 0, 100.0, 1.0)
    assert torch.equal(scores, (values[:, 0] * of_other).double())
    assert found == sum(number > 5 for number in range(10))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", " "], "mark's text: expected 1 to 200 characters, found 0"),
        (["--text", "far too long to be read"], "expected one that fits into 32 pixels with letters of 10 or more"),
        (["--other-text", "N"], "--other-text: expected another mark, found 'N' twice"),
        (["--false-positive-rate", "0.01"], "false-positive rate: expected a number below 1 and at least 1 / (12 "),
        (["--class-names", "a", "b"], "--class-names: expected 10, one a class, found 2. Name all."),
        (["--photographs", *["photo.png"] * 5], "--photographs: expected at most 4, found 5"),
        (["--marked-dir", "."], "expected a new or empty folder, or one of this mark, model and format"),
        (["--logo", "last.pth.tar"], "not allowed with argument"),
    ],
)
def test_bad_words_are_one_line(command, words, message, capsys, tmp_path):
    assert cli.main([*command, *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "watermark.jsonl").exists()


def test_a_logo_that_cannot_be_read_is_one_line(command, capsys):
    start = command.index("--text")
    words = [*command[:start], "--logo", "last.pth.tar", *command[start + 2 :]]
    assert cli.main(words) == 2
    assert "last.pth.tar: expected an image" in capsys.readouterr().err.splitlines()[-1]
