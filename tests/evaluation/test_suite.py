from __future__ import annotations

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.suite import Protocol, suites, table2_suites


def told(protocol, suite):
    found = protocol.preprocessing(suite)
    return found.resize, found.size, found.interpolation


@pytest.mark.parametrize(
    ("preset", "photo", "c", "damagenet", "patchfool"),
    [
        ("paper", (256, "bicubic"), (224, "bicubic"), (256, "bicubic"), (224, "bilinear")),
        ("easyrobust", (256, "bicubic"), (256, "bicubic"), (256, "bicubic"), (256, "bicubic")),
        ("native", (248, "bilinear"), (224, "bicubic"), (224, "bicubic"), (248, "bilinear")),
    ],
)
def test_presets_are_what_they_say(preset, photo, c, damagenet, patchfool):
    protocol = Protocol(preset, 224, own_crop_pct=0.9, own_interpolation="bilinear")
    expected = {"val": photo, "a": photo, "fgsm": photo, "cw": photo, "objectnet": photo}
    expected |= {"c": c, "stylized": c, "damagenet": damagenet, "patchfool": patchfool}
    assert {suite: told(protocol, suite) for suite in expected} == {
        suite: (resize, 224, interpolation) for suite, (resize, interpolation) in expected.items()
    }
    assert protocol.name == preset


def test_flags_that_change_a_preset_are_told():
    changed = Protocol("paper", 32, crop_pct=1.0)
    assert changed.name == "custom"
    assert told(changed, "val") == (32, 32, "bicubic")
    with pytest.raises(OptionError, match="expected one of paper, easyrobust, native, found 'theirs'"):
        Protocol("theirs")


def test_slow_attacks_take_robustbenchs_list_on_imagenets_classes_alone():
    protocol = Protocol()
    sampled = {name for name in ("val", "fgsm", "pgd", "cw", "patchfool", "autoattack") if protocol.is_sampled(name)}
    assert sampled == {"patchfool", "autoattack"}


def test_columns_are_grouped_as_in_figure_4():
    """By hand, from its caption: FGSM and DamageNet among the adversarial ones, and six OOD datasets."""
    groups = {}
    for suite in table2_suites():
        groups.setdefault(suite.group, []).append(suite.name)
    assert groups == {
        "clean": ["val"],
        "Adversarial": ["patchfool", "cw", "fgsm", "damagenet"],
        "OOD": ["a", "c", "v2", "r", "sketch", "stylized"],
    }
    assert suites()["pgd"].group == "Adversarial"
