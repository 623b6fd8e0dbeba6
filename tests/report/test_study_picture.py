"""The picture of a study, read back from the figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.records import make
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy import stats

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.study_picture import study_figure
from ns_easyrobust.report.study_runs import MethodRuns, SeedRun
from ns_easyrobust.report.study_table import StudyTable


def method(label: str, seeds: int, clean: int, *suites: str) -> MethodRuns:
    runs = [
        SeedRun(seed, [make(label, "imagenet-val", clean + seed), *(make(label, suite, 30 + seed) for suite in suites)])
        for seed in range(seeds)
    ]
    return MethodRuns(label, runs)


@pytest.mark.parametrize(("methods", "seeds"), [(16, 3), (2, 1)])
def test_one_mark_a_seed_and_a_larger_one_for_the_mean(
    tmp_path: Path, saved: list[Figure], methods: int, seeds: int
) -> None:
    rows = [method(f"_m{index}", seeds, 50 + index, "fgsm", "imagenet-r") for index in range(methods)]
    path = study_figure(StudyTable(rows, baseline="_m1"), tmp_path / "study.png")
    assert imread(path).ndim == 3
    (axes,) = saved[0].axes
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    means = [line for line in marks if line.get_markersize() > 8]
    small = [line for line in marks if line.get_markersize() <= 8]
    assert (len(means), len(small)) == (methods, methods if seeds > 1 else 0)
    assert len({(line.get_color(), line.get_marker()) for line in means}) == methods
    for index, line in enumerate(means):
        assert list(line.get_xydata()[0]) == pytest.approx([50 + index + (seeds - 1) / 2, 30 + (seeds - 1) / 2])
    for index, line in enumerate(small):
        assert line.get_xydata().tolist() == [[50 + index + seed, 30 + seed] for seed in range(seeds)]
    dashed = [line for line in axes.lines if line not in marks]
    assert set(dashed[0].get_xdata()) == {51 + (seeds - 1) / 2}
    (legend,) = saved[0].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [
        f"_m{index}" + " (baseline)" * (index == 1) for index in range(methods)
    ]
    assert "plain mean of fgsm top1, imagenet-r top1" in saved[0].get_supxlabel()
    assert ("one a seed" in saved[0].get_supxlabel()) == (seeds > 1)


def test_a_method_without_all_columns_is_named(tmp_path: Path, saved: list[Figure]) -> None:
    rows = [method("whole", 2, 50, "fgsm", "imagenet-r"), method("part", 2, 60, "fgsm")]
    study_figure(StudyTable(rows), tmp_path / "study.png")
    assert "not shown, as columns are missing: part" in saved[0].get_supxlabel()
    assert len(saved[0].legends[0].get_texts()) == 1


def test_a_series_has_one_colour_a_line_and_its_numbers(tmp_path: Path, saved: list[Figure]) -> None:
    rows = [method(label, 2, clean, "fgsm") for label, clean in (("none", 50), ("ns 0.1", 53), ("ns 0.03", 52))]
    study_figure(StudyTable(rows, baseline="ns 0.1"), tmp_path / "study.png")
    (axes,) = saved[0].axes
    line = next(line for line in axes.lines if line.get_linestyle() == "-")
    assert line.get_xydata().tolist() == [[52.5, 30.5], [53.5, 30.5]], "in the order of the numbers"
    own = [each for each in axes.lines if each.get_color() == line.get_color()]
    assert len(own) == 3, "the line, and each member's seeds"
    assert {(note.get_text(), note.xy) for note in axes.texts} == {
        ("0.1 (baseline)", (53.5, 30.5)),
        ("0.03", (52.5, 30.5)),
    }
    assert [text.get_text() for text in saved[0].legends[0].get_texts()] == ["none", "ns: 0.03, 0.1"]


@pytest.mark.parametrize("seeds", [2, 3])
def test_crosses_are_intervals_over_seeds_and_do_not_crush_the_marks(
    tmp_path: Path, saved: list[Figure], seeds: int
) -> None:
    study_figure(StudyTable([method("a", seeds, 50, "fgsm")]), tmp_path / "study.png")
    (axes,) = saved[0].axes
    across, up = (bar.get_segments()[0] for bar in axes.collections)
    for axis, (bar, start) in enumerate(((across, 50), (up, 30))):
        values = [start + seed for seed in range(seeds)]
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert sorted(bar[:, axis]) == pytest.approx(tuple(expected))
        low, high = (axes.get_xlim, axes.get_ylim)[axis]()
        assert low < min(values)
        assert high > max(values)
        assert high - low <= 2 * 1.16 * 2 + 1e-9, "two points are the least, and as much again for the bars"
    assert "95% intervals of the mean over seeds alone" in saved[0].get_supxlabel()


def test_a_single_robust_column_is_drawn_as_it_is(tmp_path: Path, saved: list[Figure]) -> None:
    table = StudyTable([method("a", 1, 50, "fgsm")])
    assert [measure.title for measure in table.measures] == ["imagenet-val top1", "fgsm top1"]
    study_figure(table, tmp_path / "study.png")
    assert saved[0].axes[0].lines[0].get_xydata().tolist() == [[50, 30]]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.png"
    apart = [method("a", 1, 50), MethodRuns("b", [SeedRun(0, [make("b", "fgsm")])])]
    many = [method(f"{index}", 1, 50, "fgsm") for index in range(57)]
    for rows, message in (
        ([method("a", 1, 50)], "found no other column"),
        (apart[1:], "found no clean column"),
        (apart, "and all of fgsm top1, found none"),
        (many, "at most 56 methods, found 57"),
    ):
        with pytest.raises(OptionError, match=message):
            study_figure(StudyTable(rows), path)
    assert not path.exists()
