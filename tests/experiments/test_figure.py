"""What the figures' experiments share: numbers that are kept, gone on with, refused, begun anew; the report of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ns_easyrobust.errors import DataError, OptionError, OutputError
from ns_easyrobust.experiments.figure import FigureExperiment
from ns_easyrobust.report.figure_report import FigureReport
from ns_easyrobust.report.sheet import Cell, Sheet
from ns_easyrobust.utils import FlagParser


class Squares(FigureExperiment):
    """squares of the whole numbers below --most"""

    name = "squares"

    def __init__(self) -> None:
        self.computed: list[int] = []

    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--most", type=int, default=3)
        parser.add_argument("--power", type=int, default=2)
        parser.add_argument("--fail-at", type=int)

    def measure(self, args, results) -> None:
        if args.most < 0:
            raise ValueError("most")
        results.begin({"power": args.power, "exact": True}, "cpu")
        self.tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        for number in range(args.most):
            if results.find(number=number) is None:
                if number == args.fail_at:
                    raise KeyboardInterrupt
                self.computed.append(number)
                results.add({"number": number, "value": number**args.power})
                (results.parts / str(number)).write_text("kept")

    def report(self, protocol, lines, parts) -> FigureReport:
        rows = [(str(line["number"]), [Cell(str(line["value"]))]) for line in lines]
        table = [("number", "value"), *((line["number"], line["value"]) for line in lines)]
        note = f"power {protocol['power']}, {len(list(parts.iterdir()))} parts"
        sheet = Sheet([("value", "")], rows)
        return FigureReport("Squares", [("", sheet)], [note], table, lambda stream: stream.write(b"PNG"))


@pytest.fixture
def with_tf32() -> Iterator[None]:
    """Whatever may be TF32, is."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def run(folder: Path, *words: str) -> tuple[list[int], list[str]]:
    experiment, parser = Squares(), FlagParser()
    experiment.add_arguments(parser)
    args = parser.parse_args(["-o", str(folder), *words])
    return experiment.computed, list(experiment.run(args, {}))


def values(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "squares.jsonl").read_text().splitlines()]
    assert [line["experiment"] for line in lines] == ["squares"] * len(lines)
    assert lines[0]["protocol"]["exact"] is True
    assert {"machine", "versions"} <= set(lines[0])
    return [line["value"] for line in lines if "value" in line]


def test_a_second_call_goes_on_where_the_first_was_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", "--fail-at", "2")
    assert values(tmp_path / "a") == [0, 1]
    computed, printed = run(tmp_path / "a", "--most", "4")
    assert computed == [2, 3]
    assert values(tmp_path / "a") == [0, 1, 4, 9]
    assert (tmp_path / "a" / "squares.csv").read_text() == "number,value\n0,0\n1,1\n2,4\n3,9\n"
    assert (tmp_path / "a" / "squares.png").read_bytes() == b"PNG"
    page = (tmp_path / "a" / "squares.md").read_text()
    assert page.startswith("# Squares\n\n![Squares](squares.png)\n\n| label | value |\n")
    assert "| 3 | 9 |" in page
    assert "power 2, 4 parts" in page
    assert "power 2, 4 parts" in printed[0]
    assert printed[-1] == f"report: {tmp_path / 'a' / 'squares.md'}"
    assert run(tmp_path / "a", "--most", "4")[0] == []
    assert Squares().render(tmp_path / "a").to_markdown("squares.png") == page.split("\n\n", 1)[1]


def test_another_protocol_is_refused_and_force_begins_anew(tmp_path):
    run(tmp_path)
    before = (tmp_path / "squares.jsonl").read_bytes()
    with pytest.raises(OptionError, match=r"^power: expected 2, with which .* was begun, found 3\. .*--force"):
        run(tmp_path, "--power", "3")
    assert (tmp_path / "squares.jsonl").read_bytes() == before
    assert run(tmp_path, "--power", "3", "--force", "--most", "2")[0] == [0, 1]
    assert values(tmp_path) == [0, 1]
    assert sorted(path.name for path in (tmp_path / "squares-parts").iterdir()) == ["0", "1"]


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "squares.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"squares\.png exists: expected numbers beside it"):
        run(tmp_path)
    assert (tmp_path / "squares.png").read_bytes() == b"mine"
    assert not (tmp_path / "squares.jsonl").exists()
    run(tmp_path, "--force")
    for wrong in ("no JSON\n", '{"experiment": "cubes"}\n', "[1]\n"):
        (tmp_path / "squares.jsonl").write_text(wrong)
        with pytest.raises(DataError, match=r"squares\.jsonl: expected the lines of experiment squares, found other"):
            run(tmp_path)
        assert (tmp_path / "squares.jsonl").read_text() == wrong


def test_parts_without_their_numbers_are_neither_used_nor_deleted(tmp_path):
    run(tmp_path)
    (tmp_path / "squares.jsonl").unlink()
    for path in ("md", "csv", "png"):
        (tmp_path / f"squares.{path}").unlink()
    for words in ((), ("--force",)):
        with pytest.raises(OutputError, match=r"squares-parts: expected an empty folder, .* Move it away"):
            run(tmp_path, *words)
    assert (tmp_path / "squares-parts" / "0").read_text() == "kept"
    assert not (tmp_path / "squares.jsonl").exists()


def test_a_call_that_fails_leaves_no_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="most"):
        run(tmp_path / "new", "--most", "-1")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="most"):
        run(tmp_path / "mine", "--most", "-1")
    assert list((tmp_path / "mine").iterdir()) == []


def test_how_long_and_on_what_it_was_measured_is_told(tmp_path, monkeypatch):
    moments = iter([0.0, 90.0, 100.0, 130.0, 0.0])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    monkeypatch.setattr("ns_easyrobust.evaluation.describe_machine", lambda device: "two abacuses")
    run(tmp_path)
    run(tmp_path, "--most", "4")
    printed = run(tmp_path, "--most", "4")[1]  # measures nothing
    assert "Measured on two abacuses, in 2.0 minutes; ns_easyrobust 0." in printed[0]


def test_nothing_to_render_is_said(tmp_path):
    with pytest.raises(DataError, match="expected the numbers of experiment squares, found none"):
        Squares().render(tmp_path)


def test_another_machine_or_version_goes_on_beneath_its_own_head(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr("ns_easyrobust.evaluation.describe_machine", lambda device: "another machine")
    run(tmp_path, "--most", "4")
    lines = [json.loads(line) for line in (tmp_path / "squares.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "seconds" not in line]
    assert [line.get("machine") == "another machine" for line in lines] == [*[False] * 4, True, False]
    assert lines[4]["protocol"] == lines[0]["protocol"]


def test_what_is_measured_on_a_gpu_is_float32(tmp_path, with_tf32):
    """TF32's flags as the measuring reads them, though set; and as they were afterwards, whatever happens."""
    for words in ((), ("--fail-at", "3", "--most", "4")):
        experiment, parser = Squares(), FlagParser()
        experiment.add_arguments(parser)
        with pytest.raises(KeyboardInterrupt) if words else nullcontext():
            list(experiment.run(parser.parse_args(["-o", str(tmp_path), *words]), {}))
        assert experiment.tf32 == (False, False)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
