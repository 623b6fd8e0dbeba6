from __future__ import annotations

import json

import pytest

from ns_easyrobust.data.completeness import short_folders


def test_unequal_folders(tmp_path):
    assert short_folders(tmp_path, {}) == short_folders(tmp_path, {"fog/1": 3, "fog/2": 3}) == ""
    found = short_folders(tmp_path, {"fog/1": 3, "fog/2": 2, "snow/5": 0})
    assert found == "2 of 3 folders have fewer than 3 images: fog/2 (2), snow/5 (0)"


@pytest.mark.parametrize(("skipped", "short"), [([], 2), (["a/1.png"], 0), (None, 0)])
def test_equal_folders_of_an_interrupted_run(tmp_path, skipped, short):
    """The command's own record knows how many there are to be; a damaged one says nothing."""
    (tmp_path / "corrupt.json").write_text(json.dumps({"images": 4, "skipped": skipped}))
    assert short_folders(tmp_path, {"fog/1": 3, "fog/2": 3}).startswith(f"{short} of 2" * bool(short))
    assert bool(short_folders(tmp_path, {"fog/1": 3, "fog/2": 3})) is bool(short)
