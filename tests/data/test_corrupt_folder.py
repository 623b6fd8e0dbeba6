"""A folder of corrupted images: its layout, the same bytes however it is made, and what is refused before."""

from __future__ import annotations

import doctest
import json
import multiprocessing
import os
import shutil
import signal
import time
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torchvision.transforms as trn
from PIL import Image

from ns_easyrobust.data import (
    CorruptedFolder,
    CorruptSettings,
    FolderCorruption,
    FrostPictures,
    class_folders,
    corrupt,
    corrupt_folder,
    known_corruptions,
    register_corruption,
)
from ns_easyrobust.data.corrupt_folder import _generator
from ns_easyrobust.errors import DataError, OptionError, OutputError

NAMES = ["shot_noise", "glass_blur", "frost", "jpeg_compression"]
PNG = CorruptSettings(format="png")
FROST = CorruptSettings(
    pictures=FrostPictures([np.random.default_rng(2).integers(0, 256, (99, 99, 3), np.uint8)] * 5, "drawn")
)


@pytest.fixture
def source(tmp_path) -> Path:
    """Six images of two classes, of different sizes, kinds and depths."""
    root = tmp_path / "val"
    for folder in ("cat", "dog/young"):
        (root / folder).mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((80, 96), Image.Resampling.BICUBIC)
    image.save(root / "cat" / "a.JPEG")
    image.convert("L").save(root / "cat" / "grey.png")
    image.convert("CMYK").save(root / "cat" / "ink.jpg")
    Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(root / "dog" / "young" / "deep.png")
    image.convert("P").save(root / "dog" / "palette.png")
    Image.new("RGB", (1, 1), (9, 90, 200)).save(root / "dog" / "dot.bmp")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("documented", [FolderCorruption, FrostPictures, corrupt, register_corruption])
def test_examples_give_what_they_say(documented, source, tmp_path):
    names = {"np": np, "data_dir": tmp_path, "corrupt": corrupt, documented.__name__: documented}
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, documented.__name__, globs=names)
    differences: list[str] = []
    with mock.patch.dict(known_corruptions()):
        tried = doctest.DocTestRunner(verbose=False).run(example, out=differences.append)
    assert tried.attempted > 0
    assert not differences, "".join(differences)


def test_layout_and_pixels(source, tmp_path):
    target = tmp_path / "imagenet-c"
    done = FolderCorruption(source, target, NAMES, [2, 5], PNG).run()
    assert done == CorruptedFolder(48, 0, 0)
    images = ["cat/a", "cat/grey", "cat/ink", "dog/dot", "dog/palette", "dog/young/deep"]
    expected = {f"{name}/{severity}/{image}.png" for name in NAMES for severity in (2, 5) for image in images}
    assert set(contents(target)) == {*expected, "corrupt.json"}
    found = class_folders(target / "frost" / "5", 2)
    assert dict(zip(found.paths, found.labels, strict=True))["dog/young/deep.png"] == 1
    for name, severity, image in (("frost", 5, "cat/a.JPEG"), ("shot_noise", 2, "cat/grey.png")):
        pixels = np.asarray(Image.open(source / image).convert("RGB"))
        generator, pictures = _generator(0, name, severity, image), FrostPictures.installed_or_drawn()
        written = Image.open(target / name / str(severity) / f"{image.split('.')[0]}.png")
        assert np.array_equal(np.asarray(written), corrupt(pixels, name, severity, generator, pictures))
    grey = np.asarray(Image.open(target / "shot_noise" / "2" / "cat" / "grey.png")).astype(int)
    assert np.ptp(grey, axis=2).max() > 0, "each channel has its own noise"


def test_the_same_bytes_again_in_later_versions(tmp_path):
    """Draws that are others than in earlier versions, which made parts of folders, would raise ``REVISION``."""
    ramp = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.fromarray(ramp).save(tmp_path / "val" / "cat" / "a.png")
    names = ["gaussian_noise", "impulse_noise"]
    FolderCorruption(tmp_path / "val", tmp_path / "c", names, [3], CorruptSettings(seed=7, format="png")).run()
    written = (np.asarray(Image.open(tmp_path / "c" / name / "3" / "cat" / "a.png")) for name in names)
    assert [sha256(pixels.tobytes()).hexdigest()[:16] for pixels in written] == ["d0190050d974319d", "b8c8dea92b52be54"]


def test_noise_may_fill_more_than_a_byte_a_pixel(tmp_path, capfd):
    """As an optimised JPEG, which Pillow cannot write then."""
    noise = np.random.default_rng(0).integers(0, 2, (260, 260, 3), dtype=np.uint8) * np.uint8(255)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.fromarray(noise).save(tmp_path / "val" / "cat" / "a.png")
    with mock.patch.object(corrupt_folder, "corrupt", lambda pixels, *rest: pixels):
        FolderCorruption(tmp_path / "val", tmp_path / "c", ["fog"], [1], CorruptSettings(quality=94)).run()
    assert (tmp_path / "c" / "fog" / "1" / "cat" / "a.jpg").stat().st_size > 260 * 260
    assert not capfd.readouterr().err


def test_jpeg_as_imagenet_c(source, tmp_path):
    target = tmp_path / "c"
    FolderCorruption(source, target, ["contrast"], [1], CorruptSettings(size=24)).run()
    names = sorted(path.name for path in (target / "contrast" / "1" / "cat").iterdir())
    assert names == ["a.JPEG", "grey.jpg", "ink.jpg"], "a JPEG keeps its name"
    photograph = Image.open(source / "cat" / "a.JPEG").convert("RGB")
    cropped = trn.Compose([trn.Resize(27), trn.CenterCrop(24)])(photograph)  # as make_imagenet_c.py, 256 and 224
    corrupted = corrupt(np.asarray(cropped), "contrast", 1, np.random.default_rng(0))
    Image.fromarray(corrupted).save(tmp_path / "by_hand.jpg", quality=85, optimize=True)
    assert (target / "contrast" / "1" / "cat" / "a.JPEG").read_bytes() == (tmp_path / "by_hand.jpg").read_bytes()


def test_same_bytes_however_it_is_made(source, tmp_path):
    """In this process, in two, in parts in another order, and after a kill in the midst of it."""
    FolderCorruption(source, tmp_path / "one", NAMES, [1, 3], FROST).run()
    expected = contents(tmp_path / "one")
    FolderCorruption(source, tmp_path / "two", NAMES[::-1], [3, 1], FROST).run(workers=2)
    for name in NAMES[::-1]:
        for severity in (3, 1):
            done = FolderCorruption(source, tmp_path / "parts", [name], [severity], FROST).run()
            assert done == CorruptedFolder(6, 0, 0)

    def killed() -> None:
        os.setsid()
        FolderCorruption(source, tmp_path / "killed", NAMES, [1, 3], FROST).run(workers=1)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    while not list((tmp_path / "killed").glob("*/*/cat/*")) and process.is_alive():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    half = tmp_path / "killed" / "frost" / "3" / "cat"
    half.mkdir(parents=True, exist_ok=True)
    (half / f".a.JPEG.{'0' * 32}.tmp").write_bytes(b"half")
    (half / "a.JPEG").write_bytes(b"")  # as a power failure may leave it
    (half / "a.JPEG.note").touch()
    done = FolderCorruption(source, tmp_path / "killed", NAMES, [1, 3], FROST).run()
    assert done.written + done.present == 48
    assert done.written > 0
    (half / "a.JPEG.note").unlink()
    for name in ("two", "parts", "killed"):
        assert contents(tmp_path / name) == expected, name


def test_what_is_there_is_not_made_again(source, tmp_path):
    FolderCorruption(source, tmp_path / "c", ["fog"], [1, 2]).run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.jpg")}
    gone, *_ = before
    gone.unlink()
    assert FolderCorruption(source, tmp_path / "c", ["fog", "snow"], [1, 2]).run() == CorruptedFolder(13, 11, 0)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path != gone)
    assert FolderCorruption(source, tmp_path / "c", ["fog", "snow"], [1, 2]).run(2) == CorruptedFolder(0, 24, 0)


def test_seeds_images_and_severities_draw_differently():
    draws = {
        float(_generator(seed, name, severity, image).random())
        for seed in (0, 1)
        for name in ("fog", "snow")
        for severity in (1, 2)
        for image in ("a/1.png", "b/1.png", "a/\udcff.png")
    }
    assert len(draws) == 24


def test_broken_images_are_found_before_anything_is_written(source, tmp_path, caplog):
    (source / "cat" / "broken.jpg").write_bytes((source / "cat" / "a.JPEG").read_bytes()[:300])
    (source / "dog" / "z.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"found 2 of 8 that cannot be read\. The first: .*cat/broken.jpg"):
        FolderCorruption(source, tmp_path / "c", ["fog"]).run()
    assert not (tmp_path / "c").exists()
    job = FolderCorruption(source, tmp_path / "c", ["fog"], [1])
    assert job.run(skip_unreadable=True) == CorruptedFolder(6, 0, 2)
    assert "left out: 2 of 8" in caplog.text
    caplog.clear()
    skipped = json.loads((tmp_path / "c" / "corrupt.json").read_text())["skipped"]
    assert skipped == ["cat/broken.jpg", "dog/z.png"]
    assert FolderCorruption(source, tmp_path / "c", ["fog"], [1]).run() == CorruptedFolder(0, 6, 2)
    assert FolderCorruption(source, tmp_path / "c", ["contrast"], [1]).run() == CorruptedFolder(6, 0, 2)
    assert not caplog.text.count("left out")


def test_an_image_that_breaks_meanwhile_stops_what_can_be_gone_on_with(source, tmp_path, monkeypatch):
    def read(path: str) -> Image.Image:
        if path.endswith("dot.bmp") and (tmp_path / "c" / "fog").exists():
            raise DataError(f"{path}: gone")
        return original(path)

    original = corrupt_folder.read_image
    monkeypatch.setattr(corrupt_folder, "read_image", read)
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            FolderCorruption(source, tmp_path / "c", ["fog"], [1]).run(workers)
        assert caught.value.line.endswith("dot.bmp: gone") or "cannot be read" in caught.value.line
    monkeypatch.undo()
    done = FolderCorruption(source, tmp_path / "c", ["fog"], [1]).run()
    assert (done.written + done.present, done.present > 0) == (6, True)


def test_refused_sources(source, tmp_path):
    for path, message in (
        (tmp_path / "none", "expected a folder of images, found none"),
        (source / "dog" / "young", "expected one folder a class, found no folders"),
        (source / "cat", "expected one folder a class"),
    ):
        with pytest.raises(DataError, match=message):
            FolderCorruption(path, tmp_path / "c", ["fog"])
    for val in ("val", "imagenet-val"):
        (tmp_path / val / "train").mkdir(parents=True)
        (tmp_path / val / val / "cat").mkdir(parents=True)
        with pytest.raises(DataError, match=rf"holds sets of images, as {val}/\. Give .*{val}/{val}\."):
            FolderCorruption(tmp_path / val, tmp_path / "c", ["fog"])
        shutil.rmtree(tmp_path / val / "train")
        shutil.rmtree(tmp_path / val / val)
    (source / "empty").mkdir()
    with pytest.raises(DataError, match=r"found 1 without: empty\. Labels would shift"):
        FolderCorruption(source, tmp_path / "c", ["fog"])
    (source / "empty").rmdir()
    shutil.copy(source / "cat" / "a.JPEG", source / "dog" / "dot.jpg")
    with pytest.raises(DataError, match=r"2 that would become dog/dot.jpg: dog/dot.bmp, dog/dot.jpg"):
        FolderCorruption(source, tmp_path / "c", ["fog"])
    assert not (tmp_path / "c").exists()


def test_refused_targets(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    for target in (source, source / "cat" / "c", tmp_path, tmp_path / "link" / "c"):
        with pytest.raises(OutputError, match="expected a folder apart from the images' own"):
            FolderCorruption(source, target, ["fog"])
    (tmp_path / "used" / "thesis").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="expected a new or empty folder"):
        FolderCorruption(source, tmp_path / "used", ["fog"])
    for target in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises((OutputError, DataError), match="file"):
            FolderCorruption(source, target, ["fog"]).run()
    assert len(contents(tmp_path)) == 7


def test_a_full_disk(source, tmp_path, monkeypatch):
    def full(image: Image.Image, path: Path, *rest: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    job = FolderCorruption(source, tmp_path / "c", ["fog"], [1])
    monkeypatch.setattr(job.record, "write", lambda skipped, more: None)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        job.run(workers=1)
    assert "\n" not in caught.value.line
    assert not contents(tmp_path / "c")


def test_an_error_leaves_nothing_half_written_by_the_other_workers(source, tmp_path, monkeypatch):
    def slow_or_full(image: Image.Image, path: Path, *rest: object, **how: object) -> None:
        writing = list((tmp_path / "c").rglob("*.tmp"))
        if len(writing) < 2:
            time.sleep(30)  # until it is ended
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", slow_or_full)
    job = FolderCorruption(source, tmp_path / "c", ["fog"], [1])
    monkeypatch.setattr(job.record, "write", lambda skipped, more: None)
    with pytest.raises(OutputError, match="No space left on device"):
        job.run(workers=2)
    assert not contents(tmp_path / "c")


@pytest.mark.parametrize(
    ("corruptions", "severities", "message"),
    [(["rain"], [1], "found rain and"), (["fog"], [0, 6], r"\[0, 6\]"), ([], [1], "corruptions"), (["fog"], [], "fog")],
)
def test_refused_settings(source, tmp_path, corruptions, severities, message):
    with pytest.raises(OptionError, match=message):
        FolderCorruption(source, tmp_path / "c", corruptions, severities)
