"""The gallery: pages that hold what their records say."""

from __future__ import annotations

import re

import pytest
from helpers.processes import load_script

from ns_easyrobust.experiments import FigureExperiment, experiments

script = load_script("gallery")
PAGES = sorted(script.GALLERY.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_holds_what_its_records_say(page):
    assert script.rendered(page, write=False) == page.read_text(), "run make gallery"


def test_a_page_without_records_is_refused(tmp_path):
    (tmp_path / "x.md").write_text("<!-- records dimensions -->\n")
    with pytest.raises(SystemExit, match=r"x\.md: expected <!-- records NAME --> and <!-- end -->, found none"):
        script.rendered(tmp_path / "x.md", write=False)


def test_every_page_is_in_the_index_and_every_figure_has_a_page():
    index = (script.GALLERY.parent / "gallery.md").read_text(encoding="utf-8")
    figures = {name for name, kind in experiments().items() if issubclass(kind, FigureExperiment)}
    assert {page.stem for page in PAGES} == figures == set(re.findall(r"\(gallery/([a-z-]+)\.md\)", index))
