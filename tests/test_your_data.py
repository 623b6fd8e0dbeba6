"""docs/your-data.md, command by command, on a few digits and a small model."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.training.options import build_parser

PAGE, OTHER_SETS = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text(encoding="utf-8").split("\n## ")
CHEAPER = {
    "train": "--device cpu -j 0 --epochs 1 --epoch-steps 2 -b 4 --ns-max-steps 3",
    "corrupt": "--corruption gaussian_noise -j 0",
    "benchmark": "--device cpu -j 0 --cw-steps 2",
}


def blocks(text: str, language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def commands(text: str) -> list[list[str]]:
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ns-easyrobust ")]


@pytest.fixture
def photographs(digits_dir, tmp_path) -> Path:
    """Of each digit 25."""
    for folder in (digits_dir / "train").iterdir():
        target = tmp_path / "photographs" / folder.name
        target.mkdir(parents=True)
        for path in sorted(folder.iterdir())[:25]:
            shutil.copy(path, target)
    return tmp_path


def test_the_page_leads_from_photographs_to_a_report(photographs, trained, monkeypatch, capsys):
    monkeypatch.chdir(photographs)
    save_model(trained, "vit.pth.tar", arch="vit_micro_patch8_32")
    exec(compile(blocks(PAGE, "python")[0], "your-data.md", "exec"), {})
    assert [len([*Path("data", split).glob("*/*.png")]) for split in ("train", "val")] == [200, 50]
    done = commands(PAGE)
    assert len(done) + 1 < 10  # with pip's
    assert [words[0] for words in done] == ["doctor", "train", "train", "corrupt", "benchmark", "benchmark", "report"]
    for words in done:
        assert cli.main([*words, *CHEAPER.get(words[0], "").split()]) == 0
    table = capsys.readouterr().out
    assert "none (baseline)" in table
    assert Path("report/results.html").exists()
    for column in ("val top1", "fgsm top1", "cw top1"):
        assert column in table


def test_flags_of_sets_without_a_folder_exist():
    known = {text for action in build_parser()._actions for text in action.option_strings}
    found = commands(OTHER_SETS)
    assert len(found) == 3
    assert {word for words in found for word in words if word.startswith("-")} <= known
