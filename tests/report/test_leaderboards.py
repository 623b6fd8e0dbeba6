"""Leaderboards' forms: their keys, numbers by hand, and what is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.records import of_released_size, whole_set

from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.per_image import load_correctness
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.report.leaderboards import easyrobust_form, read_about, robustbench_form
from ns_easyrobust.report.table import ResultsTable

# As in alibaba/easyrobust's .github/ISSUE_TEMPLATE/submit-model.md, in its order.
WORDS = ["date", "extra_data", "model", "institution", "paper_link", "code_link", "architecture", "training framework"]
SWITCHES = ["advrob_imgcls_leaderboard", "oodrob_imgcls_leaderboard", "advrob_objdet_leaderboard",
            "oodrob_objdet_leaderboard"]  # fmt: skip
OOD = ["ImageNet-val", "imagenet-v2", "imagenet-c", "imagenet-r", "imagenet-a", "imagenet-sketch", "stylized-imagenet",
       "objectnet"]  # fmt: skip
# As in RobustBench/robustbench's model_info/imagenet/Linf/Mo2022When_ViT-B.json, in its order.
ROBUSTBENCH = ["link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue",
               "architecture", "eps", "clean_acc", "reported", "autoattack_acc", "unreliable"]  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    small = whole_set(tmp_path_factory.mktemp("records"), "mine <b>", 0.6, 3, preset="easyrobust")
    return of_released_size([record for record in small if "severity" not in record.protocol])


def one(records: list[Record], suite: str, metric: str = "top1") -> Record:
    (found,) = [r for r in records if (r.suite, r.metric) == (suite, metric)]
    return found


def easyrobust(records: list[Record], **changes: Any) -> dict[str, Any]:
    return easyrobust_form(ResultsTable(records), None, **{"preset": "easyrobust", "about": {}, **changes})


def robustbench(records: list[Record], **changes: Any) -> dict[str, Any]:
    return robustbench_form(ResultsTable(records), None, **{"preset": "easyrobust", "about": {}, **changes})


def test_easyrobusts_ood_form(records: list[Record], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        form = easyrobust(records, about={"institution": "X", "extra_data": "no"})
    assert list(form) == [*WORDS, *OOD, "files", *SWITCHES]
    assert [form[name] for name in SWITCHES] == [False, True, False, False]
    assert form["imagenet-c"] == round(one(records, "imagenet-c", "mce").value, 2)
    assert form["stylized-imagenet"] == round(one(records, "imagenet-stylized").value, 2)
    assert (form["institution"], form["model"]) == ("X", "<b>mine &lt;b&gt;</b>")
    assert caplog.messages == [
        "--submit: left empty, as the records do not hold it: date, paper_link, code_link, training framework, "
        "files. Give --about FILE.json."
    ]


def test_easyrobusts_adversarial_form(records: list[Record]) -> None:
    form = easyrobust(records, leaderboard="adversarial")
    assert list(form) == [*WORDS, "ImageNet-val", "autoattack", "files", *SWITCHES]
    assert [form[name] for name in SWITCHES] == [True, False, False, False]
    assert form["autoattack"] == round(one(records, "autoattack").value, 2)


def test_objectnet_alone_may_be_missing(records: list[Record], caplog: pytest.LogCaptureFixture) -> None:
    form = easyrobust([r for r in records if r.suite != "objectnet"])
    assert form["objectnet"] is None
    assert "objectnet" in caplog.text
    with pytest.raises(OptionError, match="expected records of imagenet-v2 top1 under protocol easyrobust"):
        easyrobust([r for r in records if r.suite != "imagenet-v2"])


def test_robustbenchs_form_takes_clean_accuracy_on_the_attacked_images(records: list[Record]) -> None:
    form = robustbench(records, about={"authors": "A, B", "additional_data": True, "institution": "EasyRobust's"})
    assert list(form) == ROBUSTBENCH
    clean, attacked = one(records, "imagenet-val"), one(records, "autoattack")
    assert clean.right_path is not None
    assert attacked.right_path is not None
    right = dict(zip(*load_correctness(clean.right_path), strict=True))
    expected = [right[path] for path in load_correctness(attacked.right_path)[0]]
    assert form["clean_acc"] == f"{100 * sum(expected) / 5000:.2f}"
    assert form["clean_acc"] != f"{clean.value:.2f}"
    assert (form["autoattack_acc"], form["reported"]) == (f"{attacked.value:.2f}",) * 2
    assert (form["eps"], form["dataset"], form["number_forward_passes"]) == ("4/255", "imagenet", 1)
    assert (form["authors"], form["additional_data"], form["unreliable"]) == ("A, B", True, None)


def test_a_clean_record_on_the_same_images_is_taken_as_it_is(records: list[Record]) -> None:
    attacked = one(records, "autoattack")
    same = replace(attacked, suite="imagenet-val", value=75.0, correct=3750, right=None,
                   protocol={**one(records, "imagenet-val").protocol, "subset": "robustbench"})  # fmt: skip
    assert robustbench([attacked, same])["clean_acc"] == "75.00"
    for changes in ({"preset": "native"}, {"resize": 224}, {"dtype": "bfloat16"}):
        other = replace(same, value=90.0, correct=4500, protocol={**same.protocol, **changes})
        assert robustbench([attacked, other, same])["clean_acc"] == "75.00"
    mended = [replace(attacked, task="a"), replace(same, task="b")]
    with pytest.raises(OptionError, match="imagenet-val prepared alike that holds them"):
        robustbench(mended)
    with pytest.raises(OptionError, match="clean accuracy on AutoAttack's 5000 images"):
        robustbench([attacked, replace(one(records, "imagenet-val"), right=None)])


@pytest.mark.parametrize(
    ("suite", "protocol", "message"),
    [
        ("autoattack", {"epsilon": 8 / 255}, "autoattack top1 at L-infinity 4/255"),
        ("autoattack", {"norm": "l2"}, "autoattack top1 at L-infinity 4/255"),
        ("autoattack", {"subset": "first:16"}, r"expected images robustbench .* subset first:16 \(n=5000\)"),
    ],
)
def test_another_attack_is_refused(records: list[Record], suite: str, protocol: dict[str, Any], message: str) -> None:
    changed = [replace(r, protocol={**r.protocol, **protocol}) if r.suite == suite else r for r in records]
    with pytest.raises(OptionError, match=message):
        robustbench(changed)


def test_a_part_of_the_images_is_no_submission(records: list[Record]) -> None:
    part = [replace(r, protocol={**r.protocol, "subset": "first:40"}) if r.suite == "imagenet-val" else r
            for r in records]  # fmt: skip
    with pytest.raises(OptionError, match="imagenet-val: expected images all for a leaderboard"):
        easyrobust(part)
    for suite, n in (("imagenet-a", 7500), ("imagenet-c", 3750000), ("imagenet-sketch", 50889), ("objectnet", 18574)):
        assert one(records, suite, "mce" if suite == "imagenet-c" else "top1").n == n
        short = [replace(r, n=n - 1, correct=None) if r.suite == suite else r for r in records]
        with pytest.raises(OptionError, match=f"{suite}: expected the {n} images .* found a record of {n - 1}"):
            easyrobust(short)
    few = [replace(r, n=4999, correct=2500, value=100 * 2500 / 4999) if r.suite == "autoattack" else r
           for r in records]  # fmt: skip
    with pytest.raises(OptionError, match="autoattack: expected the 5000 images"):
        robustbench(few)


def test_everything_that_is_missing_is_said_at_once(records: list[Record]) -> None:
    some = [r for r in records if r.suite not in ("imagenet-v2", "imagenet-r", "objectnet")]
    with pytest.raises(OptionError, match="records of imagenet-v2 top1, imagenet-r top1 under protocol easyrobust"):
        easyrobust(some)
    with pytest.raises(OptionError, match=r"autoattack top1 at L-infinity 4/255 \(benchmark --adv\)"):
        robustbench([r for r in records if r.suite != "autoattack"])


def test_a_trial_run_before_does_not_hide_the_whole_measurement(records: list[Record]) -> None:
    def trial(record: Record, subset: str) -> Record:
        return replace(record, n=10, correct=5, value=50.0, right=None, images=None, label=record.label,
                       protocol={**record.protocol, "subset": subset})  # fmt: skip

    few = [trial(one(records, "imagenet-a"), "first:10"), trial(one(records, "autoattack"), "random:10")]
    assert easyrobust([*few, *records]) == easyrobust(records)
    clean = one(records, "imagenet-val")
    sampled = replace(clean, n=5000, correct=2500, value=50.0, right=None, images=None,
                      protocol={**clean.protocol, "subset": "robustbench"})  # fmt: skip
    assert easyrobust([sampled, *records]) == easyrobust(records), "whole for AutoAttack alone"
    assert robustbench([*few, *records]) == robustbench(records)


def test_another_protocol_is_said(records: list[Record], caplog: pytest.LogCaptureFixture) -> None:
    paper = [replace(r, protocol={**r.protocol, "preset": "paper"}) for r in records]
    easyrobust(paper, preset="paper")
    assert "these numbers are of protocol paper" in caplog.text
    bare = [replace(r, protocol={k: v for k, v in r.protocol.items() if k != "preset"}) for r in records]
    with pytest.raises(OptionError, match="Run ns-easyrobust benchmark for them"):
        easyrobust([r for r in bare if r.suite != "imagenet-r"], preset=None)
    with pytest.raises(OptionError, match="under protocol easyrobust, found none"):
        easyrobust(paper)


def test_one_of_several_rows_is_chosen(records: list[Record]) -> None:
    grid = ResultsTable([*records, *(replace(r, label="other", value=50.0, correct=25000) for r in records
                             if r.suite == "imagenet-val")])  # fmt: skip
    with pytest.raises(OptionError, match=r"expected one row, found 'mine <b>', 'other'\. Choose one with --row"):
        easyrobust_form(grid, None, preset="easyrobust", about={})
    with pytest.raises(OptionError, match="unknown --row"):
        easyrobust_form(grid, "none", preset="easyrobust", about={})
    assert easyrobust_form(grid, "mine <b>", preset="easyrobust", about={})["ImageNet-val"]


def test_about_is_a_json_object_of_known_words(records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "about.json"
    path.write_text(json.dumps({"institution": "ü"}), encoding="utf-8")
    assert read_about(path) == {"institution": "ü"}
    assert read_about(None) == {}
    for text in ("[1]", "{"):
        path.write_text(text)
        with pytest.raises(OptionError, match="expected a JSON"):
            read_about(path)
    with pytest.raises(OptionError, match=r"found: No such file"):
        read_about(tmp_path / "none.json")
    for about in ({"autoattack": 90}, {"clean_acc": "90"}):
        with pytest.raises(OptionError, match="What was measured comes from records"):
            easyrobust(records, about=about)


def test_a_model_of_other_classes_has_no_form(records: list[Record]) -> None:
    own = [replace(record, outputs=10) for record in records]
    for form in (easyrobust, robustbench):
        with pytest.raises(OptionError, match="1000 classes for a leaderboard, found one of 10"):
            form(own)
    assert easyrobust([replace(record, outputs=1000) for record in records]) == easyrobust(records)
