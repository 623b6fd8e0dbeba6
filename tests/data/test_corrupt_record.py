from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ns_easyrobust.data import CorruptSettings, FolderCorruption, FrostPictures
from ns_easyrobust.errors import OptionError, OutputError


@pytest.fixture
def source(tmp_path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (30, 60, 90)).save(tmp_path / "val" / name / "1.png")
    return tmp_path / "val"


def begin(source: Path, corruption: str = "contrast", severity: int = 1, **settings) -> FolderCorruption:
    return FolderCorruption(source, source.parent / "c", [corruption], [severity], CorruptSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "found seed 1 where corrupt.json says 0"),
        ({"size": 8}, "found crop shorter side to 9 bilinear, crop 8 where corrupt.json says none"),
        ({"format": "png"}, "found format png where corrupt.json says jpeg"),
        ({"quality": 90}, "found quality 90 where corrupt.json says 85"),
    ],
)
def test_a_folder_has_one_set_of_settings(source, settings, message):
    begin(source).run()
    with pytest.raises(OutputError, match=message):
        begin(source, **settings)
    begin(source, crop_pct=0.5)  # of no consequence without a size


def test_a_folder_has_one_set_of_images(source):
    begin(source).run()
    source.rename(source.with_name("moved"))
    moved = source.with_name("moved")
    begin(moved)  # the same images
    (moved / "dog" / "1.png").rename(moved / "dog" / "2.png")
    with pytest.raises(OutputError, match=r"found images those of .*moved where corrupt.json says other paths"):
        begin(moved)
    (moved / "dog" / "3.png").write_bytes((moved / "dog" / "2.png").read_bytes())
    with pytest.raises(OutputError, match=r"found images 3 where corrupt\.json says 2"):
        begin(moved)


def test_frost_counts_once_there_is_some(source):
    drawn, published = (
        FrostPictures([np.full((12, 12, 3), grey, np.uint8)] * 5, origin)
        for grey, origin in ((9, "drawn"), (200, "published"))
    )
    begin(source, pictures=published).run()
    begin(source, "frost", pictures=drawn).run()
    begin(source, pictures=published).run()
    known = json.loads((source.parent / "c" / "corrupt.json").read_text())
    assert (known["frost"], known["frost_sha256"]) == ("drawn", drawn.sha256)
    with pytest.raises(OutputError, match=r"found frost published where corrupt\.json says drawn"):
        begin(source, "frost", pictures=published)
    others = FrostPictures([np.zeros((9, 9, 3), np.uint8)], "drawn")
    with pytest.raises(OutputError, match="found frost_sha256"):
        begin(source, "frost", pictures=others)


def test_other_libraries_are_said_each_time_and_never_forgotten(source, caplog):
    begin(source).run()
    path = source.parent / "c" / "corrupt.json"
    before = json.loads(path.read_text())
    (today,) = before["libraries"]
    assert today["numpy"] == np.__version__
    for old in ({"numpy": "1.0"}, [{"numpy": "1.0"}]):  # the first as folders of earlier commits have it
        caplog.clear()
        path.write_text(json.dumps(before | {"libraries": old}))
        assert begin(source).run().written == 0
        assert json.loads(path.read_text())["libraries"] == [{"numpy": "1.0"}]
        assert not caplog.text
        for severity in (2, 3):
            caplog.clear()
            begin(source, severity=severity).run()
            assert caplog.text.count("made with different libraries, pixels may differ: [{'numpy': '1.0'}") == 1
            assert json.loads(path.read_text())["libraries"] == [{"numpy": "1.0"}, today]
            for image in path.parent.glob(f"contrast/{severity}/*/*"):
                image.unlink()
    path.write_text(json.dumps(before | {"revision": 0}))
    with pytest.raises(OutputError, match=r"found revision 1 where corrupt\.json says 0"):
        begin(source)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null", b'{"seed": 1, "seed": 2}', b"{}", b"[" * 9999])
def test_a_damaged_file_is_left_alone(source, content):
    path = source.parent / "c" / "corrupt.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"corrupt\.json") as caught:
        begin(source)
    assert "\n" not in caught.value.line
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "settings", [{"seed": -1}, {"format": "gif"}, {"quality": 0}, {"size": 0}, {"size": 9, "crop_pct": 2}]
)
def test_settings_outside_their_range(settings):
    with pytest.raises(OptionError, match="expected"):
        CorruptSettings(**settings)
