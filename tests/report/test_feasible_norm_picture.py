"""The picture of feasible norms, read back from the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from ns_easyrobust.errors import OptionError
from ns_easyrobust.report.feasible_norm_picture import feasible_norm_figure
from ns_easyrobust.report.feasible_norms import NormChanges


def changes(kinds: int, seeds: int = 2) -> NormChanges:
    def line(label: str, seed: int | None, kind: int, norm: float) -> dict[str, Any]:
        censored = (label, seed, kind) == ("b", 1, 0)
        return {
            "label": label,
            "seed": seed,
            "kind": f"kind {kind}",
            "direction": "0",
            "norm": norm,
            "censored": censored,
        }

    found = [line("before", None, kind, 10.0 + kind) for kind in range(kinds)]
    found += [line("a", seed, kind, 10.0 * 2**seed) for seed in range(seeds) for kind in range(kinds)]
    found += [line("b", seed, kind, 50.0 + seed) for seed in range(seeds) for kind in range(1)]
    return NormChanges(found)


def test_a_panel_a_kind_a_mark_a_seed_and_a_line_before(tmp_path: Path, saved: list[Figure]) -> None:
    path = feasible_norm_figure(changes(5), tmp_path / "norms.png", "eps 0.03")
    assert imread(path).ndim == 3
    panels = [axes for axes in saved[0].axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [f"kind {kind}" for kind in range(5)]
    first = panels[0]
    assert first.get_xscale() == "log"
    small = [line for line in first.lines if line.get_linestyle() == "None" and line.get_markersize() < 5]
    assert sorted((float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in small) == [
        (pytest.approx(10), 0), (pytest.approx(20), 0), (pytest.approx(50), 1), (pytest.approx(51), 1),
    ]  # fmt: skip
    assert [line.get_markerfacecolor() == "white" for line in small] == [False, False, False, True]
    (mean, _) = [line for line in first.lines if line.get_markersize() > 7 and line.get_linestyle() == "None"]
    assert mean.get_xdata()[0] == pytest.approx(200**0.5)
    before = [line for line in panels[3].lines if line.get_linestyle() == "-"]
    assert before[0].get_xdata() == pytest.approx([13, 13])
    assert [text.get_text() for text in panels[3].texts] == ["no noise"]
    assert "eps 0.03" in saved[0].get_supxlabel()


def test_too_many_panels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at most 64 kinds and 4096 marks, found 65"):
        feasible_norm_figure(changes(65), tmp_path / "norms.png")
