"""The experiment ``dimensions``: its lines, its report, what is done again and what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from helpers.models import small_vit

from ns_easyrobust.cli import main as cli
from ns_easyrobust.experiments.dimensions import DimensionsExperiment
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace import all_ones


def experiment(folder: Path, *words: object) -> int:
    return cli.main(["experiment", "dimensions", *map(str, words), "-o", str(folder)])


def lines_of(folder: Path) -> list[dict]:
    lines = [
        json.loads(line) for line in (folder / "dimensions.jsonl").read_text().splitlines() if "seconds" not in line
    ]
    return [line for line in lines if "protocol" not in line]


def test_table_of_architectures_and_files(tmp_path, capsys, monkeypatch, draw_no_more):
    torch.save(small_vit()[1].state_dict(), tmp_path / "bare.pth")
    save_model(small_vit(seed=1), tmp_path / "named.pth", arch="vit_micro_patch8_32")
    models = ["vit_micro_patch8_32", "swin_micro_patch2_32", tmp_path / "bare.pth", tmp_path / "named.pth"]
    assert experiment(tmp_path / "out", *models) == 0
    output = capsys.readouterr().out
    vit, swin, bare, named = lines_of(tmp_path / "out")
    for line in (vit, bare, named):
        assert (line["nullity"], line["nullity_with_all_ones"], len(line["relative_singular_values"])) == (128, 129, 64)
    assert (swin["nullity"], swin["nullity_with_all_ones"]) == (0, 0)
    assert bare["check"] is None
    assert bare["unknown"].endswith("give --model")
    assert vit["check"]["ignores_pixels"] is named["check"]["ignores_pixels"] is True
    assert "2 of 3 models that were checked ignore all-ones of any size" in " ".join(output.split())
    assert "Not checked: bare.pth" in " ".join(output.split())
    protocol = {"space": "normalised", "rtol": None, "norm": 1, "images": 1, "seed": 0}
    both = [vit | {"timm": timm} for timm in ("0.5.4", "1.0")]
    twice = DimensionsExperiment().report(protocol, both, tmp_path)
    assert any("1 of 1 model that were checked" in note for note in twice.notes)
    with open(tmp_path / "out" / "dimensions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["ignores_tokens"] for row in rows] == ["True", "False", "", "True"]
    assert float(rows[0]["tokens"]) == vit["check"]["tokens"]
    assert (tmp_path / "out" / "dimensions.png").read_bytes().startswith(b"\x89PNG")

    draw_no_more()
    monkeypatch.setattr(all_ones, "token_shape", None)  # no check is made again
    assert experiment(tmp_path / "out", *models) == 0
    assert lines_of(tmp_path / "out") == [vit, swin, bare, named]
    monkeypatch.undo()
    save_model(small_vit(seed=2), tmp_path / "named.pth", arch="vit_micro_patch8_32")  # another file by the same name
    assert experiment(tmp_path / "out", tmp_path / "named.pth") == 0
    *before, changed = lines_of(tmp_path / "out")
    assert len(before) == 4
    assert changed["sha256"] != named["sha256"]
    report = DimensionsExperiment().render(tmp_path / "out")
    assert [name for name, _ in report.sheets[0][1].rows] == [
        "vit_micro_patch8_32",
        "swin_micro_patch2_32",
        "bare.pth",
        "named.pth",
    ]


def test_model_names_the_architecture_of_files_that_name_none(tmp_path, draw_no_more):
    draw_no_more()
    torch.save(small_vit()[1].state_dict(), tmp_path / "bare.pth")
    assert experiment(tmp_path / "out", tmp_path / "bare.pth", "--model", "vit_micro_patch8_32", "--norm", 100) == 0
    (line,) = lines_of(tmp_path / "out")
    assert line["check"]["ignores_tokens"]
    assert line["check"]["norm"] == 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vit_tny_patch16_224"], "Did you mean vit_tiny_patch16_224"),
        (["vit_micro_patch8_32", "--model", "vit_micro_patch8_32"], "--model: expected a checkpoint file"),
        (["vit_micro_patch8_32", "--ema"], "--ema: expected a checkpoint file"),
        (["missing.pth", "--pretrained"], "found only checkpoint files"),
        (["missing.pth"], r"no checkpoint at missing\.pth"),
        (["resnet18"], "ResNet has no patch embedding"),
        (["vit_micro_patch8_32", "--norm", "0"], "--norm"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, words, message):
    assert experiment(tmp_path / "out", *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("ns-easyrobust experiment: ")]
    assert re.search(message, line)


def test_other_settings_are_refused_without_force(tmp_path, capsys, draw_no_more):
    draw_no_more()
    assert experiment(tmp_path, "vit_micro_patch8_32") == 0
    assert experiment(tmp_path, "vit_micro_patch8_32", "--norm", 10) == 2
    assert "--force" in capsys.readouterr().err
    assert experiment(tmp_path, "vit_micro_patch8_32", "--norm", 10, "--force") == 0
    assert [line["check"]["norm"] for line in lines_of(tmp_path)] == [10]
