"""The HTML page: what stands in it, that it loads nothing, and that a browser shows it."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest
from helpers.records import make, whole_set
from matplotlib.image import imread

import ns_easyrobust
from ns_easyrobust.data.benchmarks import ALEXNET_ERROR
from ns_easyrobust.evaluation.per_image import images_digest, save_correctness
from ns_easyrobust.evaluation.records import Record
from ns_easyrobust.report import html
from ns_easyrobust.report.html import html_page
from ns_easyrobust.report.published import ROWS, Published
from ns_easyrobust.report.table import ResultsTable
from ns_easyrobust.report.table2 import Table2
from ns_easyrobust.report.writing import write_report

EVIL = '<script>document.title="run"</script> & "quoted"'
VOID = {"meta", "img", "br", "link", "input"}


class Parsed(HTMLParser):
    """Tables as rows of texts, and everything that a browser could load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data + " "


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("records")
    rows = [*whole_set(folder, "base", 0.3, 0), *whole_set(folder, "new", 0.7, 1)]
    return [replace(r, label=EVIL, checkpoint=f"/{EVIL}.pth", checkpoint_sha256="ab" * 32) if r.label == "new" else r
            for r in rows]  # fmt: skip


def rendered(records: list[Record], rows: tuple[Published, ...] = (), picture: bytes | None = None) -> str:
    table = ResultsTable(records, baseline="base")
    return html_page(table, Table2(table), rows, picture)


def test_nothing_is_loaded_and_nothing_runs(records: list[Record]) -> None:
    text = rendered(records, ROWS, b"\x89PNG\r\n\x1a\n")
    parsed = Parsed(text)
    assert "<script" not in text.lower()
    loads = [
        (tag, name, value)
        for tag, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "background") or name.startswith("on")
    ]
    assert [(tag, name) for tag, name, _ in loads] == [("img", "src")]
    assert str(loads[0][2]).startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import", text)
    policy = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_labels_and_paths_are_escaped(records: list[Record]) -> None:
    parsed = Parsed(rendered(records))
    names = [row[0].strip() for row in parsed.tables[0]]
    assert names == ["", "base (baseline)", EVIL]
    (provenance,) = [table for table in parsed.tables if "checkpoint " in table[0]]
    mine = {title.strip(): cell.strip() for title, cell in zip(provenance[0], provenance[2], strict=True)}
    assert mine["checkpoint"] == f"/{EVIL}.pth"
    assert mine["sha256"] == "ab" * 32
    assert (mine["seed"], mine["machine"], mine["measured"]) == ("none drawn", "NVIDIA H200", "2026-01-31")


def test_the_first_table_is_the_papers_with_published_rows_beneath(records: list[Record]) -> None:
    parsed = Parsed(rendered(records, ROWS))
    headings, base, new, *copied = parsed.tables[0]
    assert [head.split()[0] for head in headings[1:]] == [
        "Clean", "PatchFool", "CW", "FGSM", "DamageNet", "A", "C", "V2", "R", "Sketch", "Stylized", "Average",
    ]  # fmt: skip
    assert all("published" in row[0] for row in copied)
    assert [len(copied), len(base), len(new)] == [len(ROWS), 13, 13]
    (record,) = [r for r in records if r.label == EVIL and r.suite == "cw"]
    assert new[3].split()[0] == f"{record.value:.2f}"
    assert re.search(r"\(\+\d+\.\d\d \[ ?-?\d", new[3].replace("  ", " "))
    marked = [attributes.get("class") for tag, attributes in parsed.tags if tag == "tr"]
    assert marked.count("published") == len(ROWS)


def test_corruptions_are_broken_down(records: list[Record]) -> None:
    part = [r for r in records if r.label == "base" or r.protocol.get("corruption") != "fog"]
    text = rendered(part)
    tables = [table for table in Parsed(text).tables if table[0][-1].strip() == "CE"]
    assert len(tables) == 2
    for table, label in zip(tables, ("base", EVIL), strict=True):
        assert [row[0].strip() for row in table[1:]] == [*ALEXNET_ERROR, "mCE"]
        found = {row[0].strip(): row[1:] for row in table}
        values = [
            r.value for r in part if r.label == label and r.protocol.get("corruption") == "snow"
        ]  # by severity, as they were made
        error = (100 - np.mean(values)) / ALEXNET_ERROR["snow"]
        assert [float(cell) for cell in found["snow"]] == pytest.approx([*values, np.mean(values), error], abs=0.006)
    assert {cell.strip() for cell in found["fog"]} == {"not run"}
    shades = re.findall(r'style="--share: ([\d.]+)">([\d.]+)<', text)
    assert len(shades) == (15 + 14) * 6
    assert [float(share) for share, _ in shades] == pytest.approx([float(a) / 100 for _, a in shades], abs=0.0006)
    few = [r for r in records if r.suite != "imagenet-c" or r.protocol.get("corruption") in ("snow", "fog")]
    assert [row[0].strip() for row in Parsed(rendered(few)).tables[1]] == ["", "snow", "fog", "mCE"]
    assert "Not run for any row: gaussian_noise, " in rendered(few)
    without = [r for r in records if r.suite != "imagenet-c"]
    assert "ImageNet-C" not in rendered(without)


def test_other_classes_have_no_ce(records: list[Record]) -> None:
    own = [replace(record, outputs=10) for record in records if record.metric != "mce"]
    page = rendered(own)
    section = page[page.index("<h2>ImageNet-C</h2>") : page.index("</section>", page.index("<h2>ImageNet-C</h2>"))]
    assert "CE" not in section
    assert "AlexNet" not in section
    assert section.count("<th>mean</th>") == rendered(records).count("<th>mean</th><th>CE</th>") > 0


def test_differences_beyond_chance_are_coloured(records: list[Record]) -> None:
    text = rendered(records)
    assert 'class="better"' in text
    assert 'class="worse"' not in text.split("</style>")[1].split("All measurements")[0], "0.7 beats 0.3, mCE too"
    table = ResultsTable(records, baseline=EVIL)
    assert 'class="worse"' in html_page(table, Table2(table))


def kept(folder: Path, label: str, suite: str, right: np.ndarray) -> Record:
    paths = [f"c/{index}.png" for index in range(len(right))]
    name = save_correctness(folder, f"{label}-{suite}", paths, right)
    record = make(label, suite, int(right.sum()), n=len(right), images=images_digest(paths), right=name)
    return replace(record, folder=folder)


@pytest.mark.parametrize(
    ("disagreements", "columns", "coloured"),
    [
        (4, 1, 0),  # binomial: p = 2 / 2^4 = 0.125
        (6, 1, 1),  # 2 / 2^6 = 0.031
        (6, 2, 0),  # twice that by Holm
        (7, 2, 2),  # 2 / 2^7 = 0.016, 0.031
    ],
)
def test_colours_agree_with_mcnemars_p(tmp_path: Path, disagreements: int, columns: int, coloured: int) -> None:
    base = np.arange(500) >= 250
    better = np.arange(500) >= 250 - disagreements
    records = [
        kept(tmp_path, label, suite, right)
        for label, right in (("base", base), ("new", better))
        for suite in ("imagenet-val", "imagenet-a")[:columns]
    ]
    table = ResultsTable(records, baseline="base")
    pages = html_page(table, Table2(table)).split("All measurements")
    assert [page.count('class="better"') for page in pages] == [coloured, coloured]
    for text in (*pages, table.to_text(), table.to_markdown()):
        assert "after Holm's correction" in text.replace("&#39;", "'")


def test_records_of_other_suites_have_a_page_too() -> None:
    table = ResultsTable([make("a", "pgd"), make("b", "pgd")])
    parsed = Parsed(html_page(table, Table2(table)))
    assert [row[0].strip() for row in parsed.tables[0]] == ["", "a", "b"]


def test_a_label_is_text_for_the_template_too(records: list[Record]) -> None:
    label = "{{ 7 * 7 }} {% if %}"
    parsed = Parsed(rendered([replace(r, label=label) if r.label == EVIL else r for r in records]))
    assert [row[0].strip() for row in parsed.tables[0]] == ["", "base (baseline)", label]


def test_a_value_that_the_template_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'opening' is undefined"):
        html._template().render()


def test_an_installed_package_holds_the_template() -> None:
    config = configparser.ConfigParser()
    folder = Path(ns_easyrobust.__file__).parent / "report"
    config.read(folder.parents[1] / "setup.cfg")
    patterns = config["options.package_data"]["ns_easyrobust.report"].split()
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert packed == set((folder / "templates").iterdir()) != set()


def test_help_does_not_wait_for_jinja2() -> None:
    code = (
        "import sys; from ns_easyrobust.cli import main\n"
        "try:\n    main.main(['report', '--help'])\n"
        "finally:\n    assert 'ns_easyrobust.report.html' in sys.modules and 'jinja2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_real_browser_shows_it_offline(records: list[Record], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH (Debian: apt-get install chromium)")
    write_report(records, tmp_path, baseline="base", published_rows=ROWS)
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1500,2000",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         f"--screenshot={tmp_path / 'shot.png'}", "--dump-dom", (tmp_path / "results.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "<title>Robustness report</title>" in done.stdout, "the label's script did not run"
    assert len(Parsed(done.stdout).tables[0]) == 3 + len(ROWS)
    pixels = imread(tmp_path / "shot.png")[..., :3]
    assert pixels.shape[:2] == (2000, 1500)
    ink = (pixels.max(-1) - pixels.min(-1) < 0.2) & (np.abs(pixels.mean(-1) - np.median(pixels)) > 0.5)
    assert 0.005 < ink.mean() < 0.3, "text on a plain ground"
    assert ink[:, :1490].any(axis=0).mean() > 0.8, "the table fills the window"
