"""The gallery: pages that hold what their records say."""

from __future__ import annotations

import pytest
from helpers.processes import load_script

script = load_script("gallery")
PAGES = sorted(script.GALLERY.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_holds_what_its_records_say(page):
    assert script.rendered(page, write=False) == page.read_text(), "run make gallery"


def test_a_page_without_records_is_refused(tmp_path):
    (tmp_path / "x.md").write_text("<!-- records dimensions -->\n")
    with pytest.raises(SystemExit, match=r"x\.md: expected <!-- records NAME --> and <!-- end -->, found none"):
        script.rendered(tmp_path / "x.md", write=False)
