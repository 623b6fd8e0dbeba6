from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ns_easyrobust.data import imagenet


def test_the_lists_are_those_that_easyrobust_evaluates_with():
    pytest.importorskip("easyrobust")
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


def test_the_lists_are_those_of_timm():
    info = pytest.importorskip("timm.data.imagenet_info", reason="timm 0.5.4 has no lists of classes")
    names = list(imagenet.wnids())
    assert names == info.ImageNetInfo("imagenet-1k").label_names()
    for variant, classes in ("a", imagenet.imagenet_a_classes()), ("r", imagenet.imagenet_r_classes()):
        theirs = (Path(info.__file__).parent / "_info" / f"imagenet_{variant}_synsets.txt").read_text().split()
        assert [names[index] for index in classes] == theirs


def test_reading_them_needs_no_easyrobust_and_prints_nothing(monkeypatch, capfd):
    lists = (imagenet._lists, imagenet.wnids, imagenet.robustbench_ids)
    for name in [name for name in sys.modules if name.split(".")[0] == "easyrobust"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "easyrobust", None)
    for cached in lists:
        cached.cache_clear()
    assert imagenet.wnids()[0] == "n01440764"
    assert len(set(imagenet.wnids())) == 1000
    assert len(set(imagenet.robustbench_ids())) == 5000
    assert capfd.readouterr() == ("", "")
