"""Results files that nobody meant to write: each ends in records or in one line, in bounded time."""

from __future__ import annotations

import json
import logging
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.hostile_records import hostile_lines, mutated
from helpers.records import make, mce, one_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ns_easyrobust.errors import DataError, OptionError, UserError
from ns_easyrobust.evaluation.results_file import append_record, read_records
from ns_easyrobust.report.html import html_page
from ns_easyrobust.report.leaderboards import easyrobust_form
from ns_easyrobust.report.table import ResultsTable
from ns_easyrobust.report.table2 import Table2

SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_and_show(path: Path) -> int:
    """The number of records; every table of them is made."""
    records = read_records(path)
    if records:
        table = ResultsTable(records)
        summary = Table2(table)
        texts = [table.to_text(width=100), table.to_markdown(), table.to_csv(), html_page(table, summary)]
        assert not any(control in text for control in "\x1b\0\u202e" for text in texts)
        with suppress(OptionError):  # not all of the columns
            easyrobust_form(table, table.rows[0], about={})
    return len(records)


def ends(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read_and_show(path)
    except UserError as error:
        line = str(error)
    else:
        return
    assert len(line.splitlines()) == 1
    assert len(line) < 2000


def test_each_hostile_line_ends(tmp_path: Path) -> None:
    """Some hundred of them; each is shown or refused by name."""
    rng = random.Random(0)
    of_folders = [line for line in hostile_lines() if b"severity" in line]
    for line in [*of_folders, *rng.sample(hostile_lines(), 60)]:
        ends(tmp_path / "r.jsonl", line + b"\n" + make("b").to_json().encode() + b"\n")


@SETTINGS
@given(content=st.binary(max_size=300))
def test_any_bytes_end(tmp_path: Path, content: bytes) -> None:
    ends(tmp_path / "r.jsonl", content)


@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_any_mutation_of_a_results_file_ends(tmp_path: Path, seed: int) -> None:
    records = [make("a"), make("b", correct=40), mce("a", 60.0), make("a", "fgsm", protocol={"epsilon": 1 / 255})]
    content = b"".join(record.to_json().encode() + b"\n" for record in records)
    ends(tmp_path / "r.jsonl", mutated(random.Random(seed), content))


@pytest.mark.parametrize(
    ("name", "json_value", "found"),
    [
        ("n", "1" + "0" * 400, "n: expected at most 9007199254740992"),
        ("n", "9" * 5000, "Exceeds the limit|no JSON"),
        ("n", "true", "n: expected a whole number >= 1, found True"),
        ("n", "-8", "n: expected a whole number >= 1, found -8"),
        ("value", "NaN", "value: expected a finite number"),
        ("value", "1" + "0" * 400, "value: expected a finite number"),
        ("value", "1e300", "value: expected at most 1e"),
        ("seed", str(2**64), "seed: expected at most"),
        ("protocol", '{"preset": ["paper"]}', r"protocol\['preset'\]: expected text or None, found \['paper'\]"),
        ("protocol", '{"corruption": {"a": 1}}', r"protocol\['corruption'\]: expected text"),
        ("protocol", '{"a":' * 30 + "1" + "}" * 30, "expected values at most 16 deep"),
        ("protocol", "[" * 5000 + "]" * 5000, "values nested too deeply"),
        ("protocol", '{"x": 1, "x": 2}', "'x' twice"),
        ("protocol", f'{{"x": "{"y" * 20_000}"}}', "at most 10000 characters"),
        ("versions", "[1]", "versions: expected values by name"),
        ("label", '"\\u001b[2J"', "label: expected one line of text"),
        ("right", '"/etc/passwd"', "right: expected a path below the results file's folder"),
        ("right", '"../x.npz"', "right: expected a path below"),
        ("machine", '"' + "x" * 20_000 + '"', "machine: expected text, found 'xxx"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(tmp_path: Path, name: str, json_value: str, found: str) -> None:
    values = json.loads(one_record().to_json())
    line = json.dumps({**values, name: "@"}).replace('"@"', json_value)
    (tmp_path / "r.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=rf"r\.jsonl, line 1: expected a result record, found .*({found})") as raised:
        read_records(tmp_path / "r.jsonl")
    assert len(str(raised.value)) < 700


def test_what_leaves_the_records_alone_reads_equal(tmp_path: Path) -> None:
    """A mark at the beginning, Windows' line ends, blank lines, escapes and another order of the fields."""
    records = [one_record(label="ü"), one_record(suite="imagenet-a", protocol={})]
    lines = [record.to_json() for record in records]
    escaped = [json.dumps(dict(reversed(json.loads(line).items())), indent=None) for line in lines]
    for content in (
        "\ufeff" + "\n".join(lines) + "\n",
        "\r\n".join(lines) + "\r\n",
        "\n \n" + "\n\n".join(lines),
        "\n".join(escaped),
    ):
        (tmp_path / "r.jsonl").write_bytes(content.encode())
        assert read_records(tmp_path / "r.jsonl") == records


def test_a_path_that_is_no_utf_8_stays_what_it_is(tmp_path: Path) -> None:
    """A benchmark without --label takes the checkpoint's path as its label."""
    path = os.fsdecode(b"runs/\xff.pth")
    record = one_record(label=path, checkpoint=path)
    append_record(tmp_path / "r.jsonl", record)
    (read,) = read_records(tmp_path / "r.jsonl")
    assert (read.label, read.checkpoint, read.row) == (path, path, record.row)
    assert os.fsencode(read.label) == b"runs/\xff.pth"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(DataError, match=f"cannot read {path}: expected a results file.*found: {found}"):
            read_records(path)


def test_many_variants_and_rows_take_no_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each row was compared with each other one, and each column's title with each other's."""
    caplog.set_level(logging.ERROR)
    rows = [make("a", checkpoint=f"{number}.pth", protocol={"epsilon": number}) for number in range(400)]
    table = ResultsTable(rows)
    assert len({column.title for column in table.columns}) == len(table.rows) == 400
    assert len(table.to_csv().splitlines()) == 401
