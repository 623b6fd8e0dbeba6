"""Watermarks through the command line: what the model sees, folders of marked images, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import unequal
from PIL import Image

from ns_easyrobust.cli import main as cli
from ns_easyrobust.data import Preprocessing, read_pixels
from ns_easyrobust.errors import OutputError
from ns_easyrobust.experiments.watermark_folder import MarkedFolder
from ns_easyrobust.experiments.watermark_judges import Thirds
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace import MarkDetector, patchify
from ns_easyrobust.report import WatermarkKinds


@pytest.fixture
def command(tmp_path, trained, digits_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained, tmp_path / "last.pth.tar", arch="vit_micro_patch8_32")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save("photo.png")
    return (
        f"experiment watermark --ckpt-path last.pth.tar --data-dir {digits_dir} --crop-pct 1 --images 30 -b 4 -j 0 "
        "--text N --other-text V --marked-images 6 --false-positive-rate 0.1 --photographs photo.png --device cpu "
        "-o out"
    ).split()


def class_folders(root, count=4, shift=0):
    """Images in two class folders, all of one size in bytes and of the same names, whatever their pixels are."""
    for number in range(count):
        folder = root / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number + shift).integers(60, 196, (40, 36, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"image{number}.jpg", "BMP")


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
    assert confidence["JPEG 50"] > 1e-2 > confidence[kinds.LATTICE]
    assert max(value for line in batches[kinds.VALID] for value in line["residual"]) < 5e-2
    assert all(share < 1 for line in batches[kinds.SHARES] for share in line["emboss"])
    marked, other = (
        np.mean([score for line in batches[kind] for score in line["scores"]]) for kind in (kinds.VALID, kinds.OTHER)
    )
    unmarked = [score for line in lines if "unmarked" in line for score in line["scores"]]
    assert len(unmarked) == 30
    assert marked > np.mean(unmarked) + 1
    assert marked > other
    text = " ".join(capsys.readouterr().out.split())
    assert "least squares keeps 6 of 6 predictions" in text
    before = (tmp_path / "out" / "watermark.jsonl").read_bytes()
    monkeypatch.setattr("ns_easyrobust.experiments.watermark.marked_lines", None)
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "watermark.jsonl").read_bytes() == before


@pytest.fixture
def few(digits_dir, tmp_path):
    """Three digits a class, in ``few``."""
    for folder in (digits_dir / "val").iterdir():
        for path in sorted(folder.iterdir())[:3]:
            (tmp_path / "few" / folder.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "few" / folder.name)
    return [path.relative_to(tmp_path / "few").as_posix() for path in sorted((tmp_path / "few").rglob("*.*"))]


def test_a_folder_is_marked_and_the_mark_found_in_it_and_not_beside_it(
    command, few, tmp_path, trained, capsys, draw_no_more
):
    """The whole command: digits marked in 8 bits, then looked for among unmarked ones and a broken file."""
    draw_no_more()
    more = "--data-dir few -b 30 --marked-dir both/marked --detect both"
    words = [*command, *more.split()]
    shutil.copytree("few", "both/few")
    (tmp_path / "both" / "broken.png").write_bytes(b"no image")
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "marked images: both/marked, 30 written, 30 in all" in text
    own = Path(few[0]).with_suffix(".png")
    change = read_pixels(tmp_path / "both/marked" / own) - read_pixels(tmp_path / "few" / few[0])
    assert float(change.abs().max()) > 0.05
    scaled = change[None] / trained[0].std.double().view(1, 3, 1, 1)
    weight = trained[1].patch_embed.proj.weight.detach().double().flatten(1)
    assert float((patchify(scaled, 8, 192) @ weight.T).abs().max()) < 0.05
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "out" / "detected.csv").open())}
    assert len(rows) == 61
    assert "expected an image" in rows["broken.png"]["error"]
    assert rows["broken.png"]["marked"] == ""
    found = [sum(int(rows[name]["marked"]) for name in rows if name.startswith(kind)) for kind in ("marked", "few")]
    assert found[0] >= 15 > 6 > found[1]
    assert f"the mark was found in {sum(found)} of 60 images of both, 1 could not be read: out/detected.csv" in text


def test_folders_are_served_without_a_measurement(command, few, tmp_path, capsys):
    """Images of no class too; a table of an earlier search is not lost."""
    (tmp_path / "flat").mkdir()
    for name in few[:2]:
        shutil.copy(tmp_path / "few" / name, tmp_path / "flat")
    start = command.index("--data-dir")
    flat = [*command[: start + 1], "flat", *command[start + 2 :]]
    assert cli.main([*flat, "--marked-dir", "m", "--marked-format", "float"]) == 0
    assert len(list((tmp_path / "m").glob("*.npy"))) == 2
    assert not (tmp_path / "out").exists()
    assert cli.main([*command, "--detect", "m"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detected.csv"]
    assert "images of m: out/detected.csv" in capsys.readouterr().out
    assert cli.main([*command, "--detect", "flat"]) == 2
    assert "out/detected.csv: expected none, found one" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*command, "--detect", "flat", "--force"]) == 0


class Marked:
    """Stands for a marker: images come back a little lighter."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return (images.double() + 0.1).clamp(0, 1)


def marked_folder(tmp_path, source="photos", **settings):
    return MarkedFolder(tmp_path / source, tmp_path / "m", "png16", {"mark": "N", **settings})


def test_a_marked_folder_goes_on_and_knows_what_it_was_made_of(tmp_path):
    preprocessing = Preprocessing(32, 1.0, "bicubic")
    for source, shift in (("photos", 0), ("others", 100)):  # of the same names and sizes
        class_folders(tmp_path / source, shift=shift)
    marker = Marked()
    assert "4 written, 4 in all" in marked_folder(tmp_path).write(marker, preprocessing, 3)
    assert marker.sizes == [3, 1]
    paths = sorted((tmp_path / "m").rglob("*.png"))
    image = preprocessing.transform()(Image.open(tmp_path / "photos/class0/image0.jpg").convert("RGB")).double()
    assert torch.allclose(read_pixels(tmp_path / "m/class0/image0.png"), (image + 0.1).clamp(0, 1), atol=1e-5)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "m").glob("*.json*"))
    times = [path.stat().st_mtime_ns for path in paths]
    paths[3].unlink()
    with (tmp_path / "m" / "watermark.jsonl").open("a") as stream:
        stream.write('{"image": "class1/im')  # as a call that was killed leaves it
    assert "1 written, 4 in all" in marked_folder(tmp_path).write(marker, preprocessing, 3)
    assert [path.stat().st_mtime_ns for path in paths[:3]] == times[:3]
    assert "0 written, 4 in all" in marked_folder(tmp_path).write(marker, preprocessing, 3)
    with pytest.raises(
        OutputError, match=r"image0.png: expected the marked image of .*others.*, found one that was made"
    ):
        marked_folder(tmp_path, "others")
    with pytest.raises(OutputError, match="found another mark, model or format"):
        marked_folder(tmp_path, mark="V")
    shutil.copy(tmp_path / "others/class0/image0.jpg", tmp_path / "photos/class0/image4.jpg")
    (tmp_path / "photos/class1/broken.jpg").write_text("no image")
    assert marked_folder(tmp_path).write(marker, preprocessing, 3).endswith("1 written, 5 in all, 1 could not be read")


def test_thirds_judge_by_what_the_other_two_taught():
    thirds = Thirds(11, seed=3)
    assert sorted(thirds.order.tolist()) == list(range(11))
    assert thirds.part.bincount().tolist() == [4, 4, 3]
    images, known = torch.arange(11.0)[:, None], []

    class Marker:
        def detector(self, batches):
            known.append(torch.cat(list(batches))[:, 0].long())
            return lambda images: images[:, 0].double() * 10 ** len(known)

    thirds.calibrate(Marker(), images, 0.3)
    for part, judge in enumerate(thirds.judges):
        assert torch.equal(known[part], (thirds.part == (part + 1) % 3).nonzero()[:, 0])
        held = (thirds.part == (part + 2) % 3).nonzero()[:, 0]
        assert judge.threshold == float(held.max()) * 10 ** (part + 1)  # k = 1 of 3 or 4
    judge = thirds.judge_of_others(Marker(), images, 0.3)
    assert torch.equal(known[3], (thirds.part < 2).nonzero()[:, 0])
    assert judge.threshold == float((thirds.part == 2).nonzero().max()) * 1e4


def test_the_rate_of_false_positives_is_what_was_asked_for():
    """On images like those that it was calibrated on, over 10 draws, within four standard errors."""
    model, generator = unequal(), torch.Generator().manual_seed(0)
    mark = (torch.rand(32, 32, generator=generator) > 0.5).double()
    marker = SimpleNamespace(detector=lambda batches: MarkDetector(model, mark, batches))
    for rate in (0.05, 0.1):
        rates = []
        for seed in range(10):
            noise = torch.randn(57, 3, 32, 32, generator=generator)
            images = (0.5 + 0.1 * (noise + 2 * noise.roll(1, 3))).clamp(0, 1)
            thirds = Thirds(len(images), seed)
            thirds.calibrate(marker, images, rate)
            rates.append(thirds.scores(torch.arange(len(images)), images)[1] / len(images))
        # The k-th of 19 scores, k / 20 = rate.
        assert abs(np.mean(rates) - rate) < 4 * np.std(rates) / 10**0.5
        assert np.std(rates) < rate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", " "], "mark's text: expected 1 to 200 characters, found 0"),
        (["--text", "far too long to be read"], "expected one that fits into 32 pixels with letters of 10 or more"),
        (["--other-text", "N"], "--other-text: expected another mark, found 'N' twice"),
        (["--false-positive-rate", "0.01"], "false-positive rate: expected a number below 1 and at least 1 / (10 "),
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


@pytest.mark.parametrize(
    ("logo", "message"),
    [("last.pth.tar", "last.pth.tar: expected an image"), ("wide.png", "10 pixels wide and high or more in an image")],
)
def test_a_logo_that_cannot_be_read_is_one_line(command, logo, message, capsys):
    Image.fromarray(np.repeat(np.arange(100, dtype=np.uint8)[None] % 2 * 255, 20, 0)).resize((400, 80)).save("wide.png")
    start = command.index("--text")
    words = [*command[:start], "--logo", logo, *command[start + 2 :]]
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
