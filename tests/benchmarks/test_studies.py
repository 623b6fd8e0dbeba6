"""The studies that come with the project: each file's flags are flags, and so are those of the commands around them."""

from __future__ import annotations

import importlib
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ns_easyrobust.cli import benchmark, train
from ns_easyrobust.cli.main import parser_of
from ns_easyrobust.experiments import Command
from ns_easyrobust.experiments.study_file import read_study
from ns_easyrobust.experiments.study_plan import plan_runs

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "benchmarks" / "studies").rglob("*.yaml"))


@pytest.fixture
def script(monkeypatch):
    """Scripts by name, which find each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_can_be_planned(path, tmp_path, digits_dir, monkeypatch):
    """All but the files that it names: keys, flags of train and benchmark, factories, costs."""
    monkeypatch.chdir(ROOT)  # where factories are named from
    commands = {
        name: Command(parser_of(name), partial(verb.parse, parser_of(name)))
        for name, verb in {"train": train, "benchmark": benchmark}.items()
    }
    study = replace(read_study(path), data_dir=str(digits_dir))
    runs = plan_runs(study, tmp_path, commands, with_files=False)
    assert len(runs) == len(study.methods) * len(study.seeds) + len(study.checkpoints)


def test_studies_of_the_evidence_were_laid_down_before():
    folder = ROOT / "benchmarks" / "studies" / "evidence"
    assert len(list(folder.glob("*.yaml"))) >= 6
    for path in folder.glob("*.yaml"):
        study = read_study(path)
        assert study.question
        assert study.protocol
        assert study.primary


def parsed(printed: str) -> list[list[str]]:
    """The commands that a dry run has printed, after their own parsers have read those of this package."""
    commands = [shlex.split(line[2:]) for line in printed.splitlines() if line.startswith("$ ")]
    for program, verb, *words in (words for words in commands if words[0] == "ns-easyrobust"):
        parser_of(verb).parse_args(words)
        assert program == "ns-easyrobust"
    return commands


def test_the_small_path_is_made_of_commands(script, tmp_path, capsys):
    script("study_small").main(["--dry-run", "--output", str(tmp_path / "new")])
    commands = parsed(capsys.readouterr().out)
    verbs = [words[1] if words[0] == "ns-easyrobust" else words[0] for words in commands]
    assert (
        verbs
        == ["mkdir", "ln", *["python"] * 2, *["corrupt"] * 2, "train", "experiment", "python"] + ["experiment"] * 2
    )
    assert not (tmp_path / "new").exists()


def test_the_evidence_is_made_of_commands_for_all_of_its_studies_on_imagenette(script, tmp_path, capsys):
    script("evidence").main(["a folder", "start", "--processes", "3", "--dry-run", "--output", str(tmp_path / "new")])
    commands = parsed(capsys.readouterr().out)
    assert ["python", "benchmarks/imagenette_tree.py", str(Path("a folder").resolve()), "data"] in commands
    run = [Path(words[4]).stem for words in commands if words[1:3] == ["experiment", "study"]]
    written = {path.stem for path in (ROOT / "benchmarks" / "studies" / "evidence").glob("*.yaml")}
    elsewhere = {"small", *(name for name in written if name.startswith("cifar_"))}
    assert sorted(run) == sorted(written - elsewhere | {"confirm"})
    assert run.index("variants") < run.index("confirm")
    assert all(words[-2:] == ["--processes", "3"] for words in commands if words[1:3] == ["experiment", "study"])
    assert not (tmp_path / "new").exists()


def test_evidence_names_what_is_not_there(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script("evidence").main([str(tmp_path), str(tmp_path / "start"), "--output", str(tmp_path / "new")])
    assert f"expected {tmp_path / 'train'}, found nothing there" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
