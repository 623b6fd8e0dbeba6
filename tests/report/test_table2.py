"""The Table 2 view against numbers counted by hand from the bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.records import SIZES, make, paths_of, whole_set

from ns_easyrobust.data.benchmarks import ALEXNET_ERROR
from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.per_image import load_correctness
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.report.published import COLUMNS, ROWS
from ns_easyrobust.report.sheet import Sheet, as_markdown
from ns_easyrobust.report.statistics import mcnemar, wilson_interval
from ns_easyrobust.report.table import ResultsTable
from ns_easyrobust.report.table2 import Table2
from ns_easyrobust.report.table2_view import table2_sheet


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("records")
    return [*whole_set(folder, "base", 0.45, 0), *whole_set(folder, "new", 0.6, 1)]


def summed(records: list[Record], baseline: str | None = "base", preset: str | None = None) -> Table2:
    return Table2(ResultsTable(records, baseline=baseline), preset)


def without(records: list[Record], *suites: str, label: str | None = None) -> list[Record]:
    return [r for r in records if r.suite not in suites or (label is not None and r.label != label)]


def only(records: list[Record], label: str, suite: str) -> Record:
    (found,) = [r for r in records if (r.label, r.suite) == (label, suite) and r.metric in ("top1", "mce")]
    return found


def bits(record: Record) -> dict[str, bool]:
    assert record.right_path is not None
    paths, right = load_correctness(record.right_path)
    return dict(zip(paths, map(bool, right), strict=True))


def row_of(sheet: Sheet, name: str) -> dict[str, str]:
    """Title -> the cell in one line."""
    (cells,) = [cells for found, cells in sheet.rows if found == name]
    titles = [title for title, _ in sheet.headings]
    return {t: " ".join(filter(None, (c.value, *c.rest))) for t, c in zip(titles, cells, strict=True)}


def test_eleven_columns_in_the_papers_order(records: list[Record]) -> None:
    summary = summed(list(reversed(records)))
    assert tuple(summary.columns) == COLUMNS
    assert summary.preset == "paper"
    titles = [title for title, _ in table2_sheet(summary).headings]
    assert titles == ["Clean", "PatchFool", "CW", "FGSM", "DamageNet", "A", "C (mCE)", "V2", "R", "Sketch", "Stylized",
                      "Average"]  # fmt: skip


def test_average_by_hand(records: list[Record]) -> None:
    summary = summed(records)
    for row in ("base", "new"):
        top1 = [r.value for r in records if r.label == row and r.metric == "top1"
                and r.suite not in ("imagenet-c", "objectnet", "autoattack")]  # fmt: skip
        (mce,) = [r.value for r in records if r.label == row and r.metric == "mce"]
        assert len(top1) == 10
        assert summary.average(row) == pytest.approx((sum(top1) + 100 - mce) / 11)
    found = summary.average_difference("new")
    assert found is not None
    assert found.delta == pytest.approx(summary.average("new") - summary.average("base"))  # type: ignore[operator]
    assert found.p is None
    assert summary.average_difference("base") is None


def test_a_difference_counts_images(records: list[Record]) -> None:
    new, base = bits(only(records, "new", "cw")), bits(only(records, "base", "cw"))
    only_new, only_base = (sum(a[p] and not b[p] for p in a) for a, b in ((new, base), (base, new)))
    found = summed(records).difference("new", "cw")
    assert found is not None
    assert found.delta == pytest.approx(100 * (only_new - only_base) / 40)
    assert found.p == pytest.approx(mcnemar(only_new, only_base))


def corruption_gain(records: list[Record], path: str) -> float:
    """How much lower mCE gets by ``path``'s 75 verdicts, times n."""
    total = 0.0
    for name, alexnet in ALEXNET_ERROR.items():
        for label, sign in (("new", 1), ("base", -1)):
            found = [r for r in records if r.label == label and r.protocol.get("corruption") == name]
            total += sign * sum(100 * bits(r)[path] for r in found) / 5 / alexnet / 15
    return total


@pytest.mark.stress
def test_intervals_of_mce_and_average_are_the_normal_ones(records: list[Record], tmp_path: Path) -> None:
    """Per image, summed over the conditions it is in; sets of images on their own."""
    summary = summed(records)
    gains = {path: corruption_gain(records, path) for path in paths_of("imagenet-c", 40)}
    values = np.array(list(gains.values()))
    found = summary.difference("new", "c")
    assert found is not None
    assert found.delta == pytest.approx(-values.mean())
    half = 1.96 * values.std() / 40**0.5
    assert (found.low, found.high) == pytest.approx((-values.mean() - half, -values.mean() + half), abs=0.2 * half)
    assert found.p is None

    sums: dict[frozenset[str], dict[str, float]] = {frozenset(gains): {p: gain / 11 for p, gain in gains.items()}}
    for record in records:
        if record.label == "new" and record.metric == "top1" and record.suite in SIZES:
            if record.suite in ("objectnet", "autoattack"):
                continue
            mine, base = bits(record), bits(only(records, "base", record.suite))
            group = sums.setdefault(frozenset(mine), dict.fromkeys(mine, 0.0))
            for path in mine:
                group[path] += 100 * (mine[path] - base[path]) / 11
    assert len(sums) == 7, "val, cw, fgsm, stylized and C hold the same photographs"
    groups = [np.array(list(group.values())) for group in sums.values()]
    centre = sum(group.mean() for group in groups)
    half = 1.96 * sum(group.var() / len(group) for group in groups) ** 0.5
    average = summary.average_difference("new")
    assert average is not None
    assert average.delta == pytest.approx(centre)
    assert (average.low, average.high) == pytest.approx((centre - half, centre + half), abs=0.2 * half)


def test_mce_of_other_measurements_has_no_interval(records: list[Record]) -> None:
    changed = [replace(r, value=r.value + 1) if r.metric == "mce" and r.label == "new" else r for r in records]
    found = summed(changed).difference("new", "c")
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert summed(changed).average_difference("new").low is None  # type: ignore[union-attr]


def test_corruption_errors_by_hand(records: list[Record]) -> None:
    summary = summed(records)
    errors = []
    for name, alexnet in ALEXNET_ERROR.items():
        found = [r.value for r in records if r.label == "new" and r.protocol.get("corruption") == name]
        errors.append((100 - np.mean(found)) / alexnet)
        assert summary.corruption_error("new", name) == pytest.approx(errors[-1])
    assert summary.record("new", "c").value == pytest.approx(np.mean(errors))  # type: ignore[union-attr]
    part = summed([r for r in records if r.protocol.get("severity") != 3])
    assert part.corruption_error("new", "fog") is None
    assert len(part.corruptions("new")) == 60


def test_what_was_not_run_is_said(records: list[Record]) -> None:
    some = without(without(records, "patchfool", "imagenet-a"), "damagenet", label="new")
    summary = summed(some)
    sheet = table2_sheet(summary)
    assert "PatchFool" not in [title for title, _ in sheet.headings]
    assert "Not run for any row: PatchFool, A." in sheet.notes
    assert row_of(sheet, "new")["DamageNet"] == "not run"
    assert row_of(sheet, "new")["Average"] == "needs 3 more"
    assert row_of(sheet, "base (baseline)")["Average"] == "needs 2 more"
    assert summary.average("base") is None
    assert summary.average_difference("new") is None


def test_cells_carry_difference_interval_and_n(records: list[Record]) -> None:
    record = only(records, "new", "imagenet-a")
    low, high = wilson_interval(record.correct or 0, 30)
    cell = row_of(table2_sheet(summed(records)), "new")["A"]
    assert cell.startswith(f"{record.value:.2f} (")
    assert ", p" in cell
    assert cell.endswith(f") [{low:.2f}, {high:.2f}]")
    other = make("third", "imagenet-a", 10, n=20, images="f" * 64, protocol=dict(record.protocol))
    sheet = table2_sheet(summed([*records, other]))
    assert row_of(sheet, "third")["A"].startswith("50.00 (")
    assert "p=" not in row_of(sheet, "third")["A"], "other images are not compared one by one"
    assert row_of(sheet, "third")["A"].endswith(" n=20")
    assert any(note.startswith("A: n differs: 30 (base, new); 20 (third)") for note in sheet.notes)


def with_epsilon(record: Record, steps: float) -> Record:
    return replace(record, protocol={**record.protocol, "epsilon": steps / 255})


def test_the_papers_radius_is_preferred_and_alone_enters_the_average(records: list[Record]) -> None:
    more = [with_epsilon(r, 4) for r in records if r.suite == "fgsm"]
    third = [replace(with_epsilon(r, 4), label=f"third{i}") for i, r in enumerate(more)]
    summary = summed([*more, *third, *records])
    assert summary.columns["fgsm"].title == "FGSM"
    assert summary.record("third0", "fgsm") is None
    assert summary.average("new") is not None
    sheet = table2_sheet(summary)
    assert "FGSM: also measured as fgsm top1 (epsilon=4/255); see the table of all measurements." in sheet.notes
    summary = summed([*without(records, "fgsm"), *more])
    assert summary.columns["fgsm"].title == "FGSM 4/255"
    assert summary.missing("new") == ["FGSM"]
    assert row_of(table2_sheet(summary), "new")["Average"] == "needs 1 more"


def test_bounded_cw_is_another_column(records: list[Record]) -> None:
    bounded = [replace(r, protocol={**r.protocol, "radius": 0.5}) for r in records if r.suite == "cw"]
    assert "cw" not in summed([*without(records, "cw"), *bounded]).columns
    assert summed([*bounded, *records]).record("new", "cw") == only(records, "new", "cw")


def test_settings_of_most_rows_win_and_the_others_are_named(records: list[Record]) -> None:
    rare = replace(only(records, "new", "imagenet-r"), label="third")
    rare = replace(rare, protocol={**rare.protocol, "crop": 200, "preset": "custom"})
    custom = [replace(r, protocol={**r.protocol, "preset": "custom"}) for r in records]
    sheet = table2_sheet(summed([rare, *custom]))
    assert row_of(sheet, "third")["R"] == "not run"
    assert any(note.startswith("R: also measured as imagenet-r top1 (crop=200)") for note in sheet.notes)


def test_a_row_of_another_subset_is_shown_and_said(records: list[Record]) -> None:
    few = make("third", "imagenet-r", 5, n=10, images="f" * 64,
               protocol={**only(records, "new", "imagenet-r").protocol, "subset": "first:10"})  # fmt: skip
    more = replace(few, n=12, correct=6, images="e" * 64, protocol={**few.protocol, "subset": "first:12"})
    both = replace(few, label="new")
    summary = summed([*records, few, more, both])
    assert summary.record("third", "r") == more, "of several the largest"
    assert summary.record("new", "r") == only(records, "new", "imagenet-r"), "the column's own images first"
    sheet = table2_sheet(summary)
    assert row_of(sheet, "third")["R"].endswith(" n=12")
    assert any(note.startswith("R: n differs: 24 (base, new); 12 (third)") for note in sheet.notes)
    assert any(note.startswith("R: also measured as imagenet-r top1 (subset=first:10)") for note in sheet.notes)
    assert "needs 11 more" in row_of(sheet, "third")["Average"]
    alone = summed([few, replace(more, label="fourth"), replace(few, label="fourth")], None)
    assert alone.record("fourth", "r") == replace(more, label="fourth"), "the most images first"


def test_a_row_of_fewer_images_has_no_average(records: list[Record]) -> None:
    clean = only(records, "new", "imagenet-val")
    few = replace(clean, n=10, correct=9, value=90.0, right=None, images="f" * 64,
                  protocol={**clean.protocol, "subset": "first:10"})  # fmt: skip
    summary = summed([*(r for r in records if r != clean), few])
    assert summary.record("new", "val") == few
    assert (summary.average("new"), summary.missing("new")) == (None, ["Clean"])
    assert summary.average("base") is not None
    assert "Clean: new: of another part of the images than the column, so without an Average." in (
        table2_sheet(summary).notes
    )


def test_corruptions_of_another_subset_stand_with_their_mce(records: list[Record]) -> None:
    def thinned(record: Record) -> Record:
        c = record.label == "new" and record.suite == "imagenet-c"
        return replace(record, protocol={**record.protocol, "subset": "random:9"}) if c else record

    summary = summed([thinned(record) for record in records])
    assert len(summary.corruptions("new")) == len(summary.corruptions("base")) == 75
    assert summary.corruptions("new") == {
        key: thinned(record) for key, record in summed(records).corruptions("new").items()
    }


def test_a_preset_of_another_suite_may_be_asked_for(records: list[Record]) -> None:
    attacked = replace(only(records, "new", "imagenet-val"), suite="autoattack")
    attacked = replace(attacked, protocol={**attacked.protocol, "preset": "easyrobust"})
    assert summed([attacked, *records], preset="easyrobust").columns == {}
    assert summed([attacked, *records]).preset == "paper"


def test_models_of_another_size_share_a_presets_column(records: list[Record]) -> None:
    large = replace(only(records, "new", "imagenet-val"), label="large")
    large = replace(large, protocol={**large.protocol, "resize": 438, "crop": 384})
    summary = summed([*records, large])
    assert set(summary.columns["val"].records) == {"base", "new", "large"}
    (line,) = [line for line in table2_sheet(summary).lists[0][1] if line.startswith("Clean: ")]
    assert "resize=256 (base, new); 438 (large)" in line
    assert "subset=all" in line
    custom = [replace(r, protocol={**r.protocol, "preset": "custom"}) for r in [*records, large]]
    assert set(summed(custom).columns["val"].records) == {"base", "new"}


def test_one_preset_at_a_time(records: list[Record]) -> None:
    other = replace(only(records, "new", "imagenet-val"), protocol={"preset": "easyrobust"}, value=50.0, correct=20)
    assert summed([other, *records]).record("new", "val") == only(records, "new", "imagenet-val")
    summary = summed([other, *records], preset="easyrobust")
    assert summary.record("new", "val") == other
    assert list(summary.columns) == ["val"]
    with pytest.raises(OptionError, match=r"expected one that the records have \(easyrobust, paper\), found 'native'"):
        summed([other, *records], preset="native")
    assert summed([make("base")]).preset is None
    assert summed([make("base")]).record("base", "val") is not None


def test_published_rows_are_marked_and_bare(records: list[Record]) -> None:
    sheet = table2_sheet(summed(without(records, "imagenet-r")), ROWS)
    names = [name for name, _ in sheet.rows]
    assert names[:2] == ["base (baseline)", "new"]
    assert len(names) == 2 + len(ROWS)
    assert all("(published, " in name for name in names[2:])
    row = row_of(sheet, "ViT-B + MixUp (published, arXiv:2403.10476, Table 2)")
    assert (row["Clean"], row["CW"], row["R"], row["Average"]) == ("77.80", "not given", "34.90", "not given")
    assert row_of(sheet, "ViT-S + NS (published, arXiv:2403.10476, Table 2)")["Average"] == "34.45"
    assert dict(sheet.headings)["R"] == "not run"
    assert row_of(sheet, "new")["R"] == "not run"
    assert any("not measured here" in note for note in sheet.notes)
    (fewer,) = [note for note in sheet.notes if note.startswith("Not to be set beside the published rows")]
    assert "Clean (n=40 of 50000), PatchFool (n=16 of 5000)" in fewer
    whole_a = [replace(r, n=7500, correct=3750, value=50.0, right=None, images=None) if r.suite == "imagenet-a" else r
               for r in records]  # fmt: skip
    (fewer,) = [note for note in table2_sheet(summed(whole_a), ROWS).notes if note.startswith("Not to be set")]
    assert " A (" not in fewer
    assert " V2 (n=20 of 10000)" in fewer
    assert not any("published" in note.lower() for note in table2_sheet(summed(records)).notes)


def test_a_few_suites_alone_still_render(records: list[Record]) -> None:
    digits = [make("a", protocol={"resize": 32}), make("b", correct=70, protocol={"resize": 32})]
    sheet = table2_sheet(summed(digits, None))
    assert [title for title, _ in sheet.headings] == ["Clean", "Average"]
    text = as_markdown(sheet)
    assert "| a | 60.00 [50.20, 69.06] | needs 10 more |" in text
    assert summed([make("a", "pgd")], None).columns == {}


def test_other_classes_have_a_mean_over_corruptions_and_neither_mce_nor_an_average(records: list[Record]) -> None:
    """Beside ImageNet's rows, whose own mean over corruptions stays out of this table."""
    settings = {"preset": "paper", "subset": "all"}
    base = [replace(record, outputs=1000) for record in records if record.label == "base"]
    theirs = replace(base[0], suite="imagenet-c", metric="top1_mean", value=40.0, correct=None, right=None)
    own = make("own", "imagenet-val", 60, protocol=settings, outputs=10)
    mean = make("own", "imagenet-c", None, metric="top1_mean", value=31.0, protocol=settings, outputs=10)
    summary = summed([*base, theirs, own, mean], None)
    sheet = table2_sheet(summary)
    assert [title for title, _ in sheet.headings][6:8] == ["C (mCE)", "C (top-1)"]
    assert row_of(sheet, "own")["C (top-1)"] == "31.00"
    assert row_of(sheet, "own")["Average"] == "ImageNet only"
    assert row_of(sheet, "base")["C (top-1)"] == "not run"
    assert summary.average("base") == summed(records, None).average("base")
    assert any("have neither mCE nor an Average: own." in note for note in sheet.notes)
    alone = table2_sheet(summed([own, mean], None))
    assert [title for title, _ in alone.headings] == ["Clean", "C (top-1)", "Average"]
    assert not any("C (mCE)" in note for note in alone.notes if note.startswith("Not run"))
    assert [column.title for column in ResultsTable([own, mean]).columns] == ["val top1", "c top1_mean"]
    assert [column.title for column in ResultsTable([replace(own, outputs=None)]).columns] == ["imagenet-val top1"]


def test_other_corruptions_or_framings_are_another_column() -> None:
    """A preset derives the resizing of the released images from the model's size, not that of whole photographs."""

    def mean(label: str, **settings: object) -> Record:
        protocol = {"preset": "paper", "subset": "all", "resize": 224, "folders": "contrast 5 (1 of 75)", **settings}
        return make(label, "imagenet-c", None, metric="top1_mean", value=31.0, protocol=protocol, outputs=10)

    for other in (mean("b", folders="fog 5 (1 of 75)"), mean("b", resize=256, corrupted="whole images")):
        column = summed([mean("a"), other], None).columns["c_top1"]
        assert list(column.records) == ["a"]
        assert len(column.left_out) == 1
    assert list(summed([mean("a"), mean("b", resize=384)], None).columns["c_top1"].records) == ["a", "b"]
