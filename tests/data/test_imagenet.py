from __future__ import annotations

import sys

import pytest

from ns_easyrobust.data import imagenet
from ns_easyrobust.errors import OptionError


def test_the_lists_are_those_that_easyrobust_evaluates_with():
    from easyrobust.benchmarks.adversarial.autoattack import AutoAttackImageNetDataset
    from easyrobust.benchmarks.ood import imagenet_a, imagenet_r, objectnet

    assert list(imagenet.wnids()) == imagenet_a.all_wnids == sorted(imagenet_a.all_wnids)
    assert [c in imagenet.imagenet_a_classes() for c in range(1000)] == imagenet_a.imagenet_a_mask
    assert [c in imagenet.imagenet_r_classes() for c in range(1000)] == imagenet_r.imagenet_r_mask
    assert len(imagenet.imagenet_a_classes()) == len(imagenet.imagenet_r_classes()) == 200
    assert imagenet.objectnet_classes() == objectnet.objectnet_mapping
    theirs = AutoAttackImageNetDataset("")._indices
    assert list(imagenet.robustbench_ids()) == [path for path, _ in theirs]
    assert [imagenet.wnid_index()[path.split("/")[0]] for path in imagenet.robustbench_ids()] == [
        int(label) for _, label in theirs
    ]


@pytest.fixture
def fresh():
    imagenet.wnids.cache_clear()
    imagenet.robustbench_ids.cache_clear()
    yield
    imagenet.wnids.cache_clear()
    imagenet.robustbench_ids.cache_clear()


def test_reading_them_imports_and_prints_nothing(fresh, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.split(".")[0] == "easyrobust"]:
        monkeypatch.delitem(sys.modules, name)
    assert len(imagenet.wnids()) == 1000
    assert len(imagenet.robustbench_ids()) == 5000
    assert not [name for name in sys.modules if name.split(".")[0] == "easyrobust"]
    assert capfd.readouterr() == ("", "")


def test_without_easyrobust(fresh, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="expected easyrobust to be installed, found none"):
        imagenet.wnids()


def test_another_version_of_easyrobust(fresh, monkeypatch, tmp_path):
    (tmp_path / "easyrobust" / "benchmarks" / "ood").mkdir(parents=True)
    (tmp_path / "easyrobust" / "__init__.py").touch()
    (tmp_path / "easyrobust" / "benchmarks" / "ood" / "imagenet_a.py").write_text("names = []\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "easyrobust", raising=False)
    with pytest.raises(OptionError, match=r"imagenet_a\.py: expected the list all_wnids, found none"):
        imagenet.wnids()
    with pytest.raises(OptionError, match=r"image_ids\.txt: expected easyrobust 0\.2\.4 with this file"):
        imagenet.robustbench_ids()
