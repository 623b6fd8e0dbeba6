"""The README's example runs as it stands, and what it names exists."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import ns_easyrobust
from ns_easyrobust.attacks import known_attacks
from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.training.options import build_parser
from ns_easyrobust.utils import add_settings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_example_runs_and_prints_what_is_said(trained, digits_dir, tmp_path, monkeypatch, capsys):
    """On another model than the demo's: with the same words, and as clear a difference."""
    (example,) = [block for block in blocks("python") if block.startswith("import")]
    assert len([line for line in example.splitlines() if line]) == 12
    (tmp_path / "output" / "demo" / "pretrained").mkdir(parents=True)
    (tmp_path / "output" / "demo" / "digits").symlink_to(digits_dir)
    save_model(trained, tmp_path / "output" / "demo" / "pretrained" / "last.pth.tar")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    told = next(block for block in blocks("") if block.startswith("noise: mse_probability"))
    printed = capsys.readouterr().out
    assert re.sub(r"[0-9.]+", "0", printed) == re.sub(r"[0-9.]+", "0", told)
    for text in (told, printed):
        noise, noise_agreement, permuted, permuted_agreement = (float(x) for x in re.findall(r"[0-9.]+", text))
        assert 2 * noise < permuted
        assert noise_agreement > 1.5 * permuted_agreement


def test_commands_and_flags_exist():
    named = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert named == set(cli.VERBS)
    train = next(block for block in blocks("") if "ns-easyrobust train" in block).split("ns-easyrobust benchmark")[0]
    words = shlex.split(train.replace("\\\n", " ").split("ns-easyrobust train", 1)[1])
    known = {text for action in build_parser()._actions for text in action.option_strings}
    assert {word.replace("_", "-") for word in words if word.startswith("-")} <= known


def test_folders_and_public_names_exist():
    root = Path(__file__).parent.parent
    folders = {path.parent.name for path in (root / "ns_easyrobust").glob("*/__init__.py")}
    assert set(re.findall(r"^\| \d \| `(\w+)/`", README, re.MULTILINE)) == folders
    assert all(hasattr(ns_easyrobust, name) for name in ns_easyrobust.__all__)


def test_the_demos_pictures_and_table_are_there():
    root = Path(__file__).parent.parent
    assert all((root / name).exists() for name in re.findall(r"docs/[\w./-]+", README))
    table = (root / "docs" / "demo" / "results.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    rows = [line.split("|")[1].strip() for line in table[2:]]
    assert rows == ["pretrained", "--aug none (baseline)", "--aug random", "--aug permuted", "--aug nullspace"]


def test_files_that_the_docs_name_are_there():
    root = Path(__file__).parent.parent
    pages = [*(root / "docs").glob("*.md"), root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md"]
    named = {name for page in pages for name in re.findall(r"`((?:tests|benchmarks)/[\w/.]+\.\w+)`", page.read_text())}
    assert len(named) > 5
    assert [name for name in sorted(named) if not (root / name).exists()] == []
    places = set(re.findall(r"`((?:\w+/)+\w+\.py)`", (root / "CONTRIBUTING.md").read_text()))
    assert [
        place
        for place in sorted(places)
        if not any((start / place).exists() for start in (root, root / "ns_easyrobust"))
    ] == []


def test_the_docs_table_of_attacks_settings_is_the_registrys():
    rows = ["| flag | what | default |", "|:--|:--|:--|"]
    parser = argparse.ArgumentParser()
    for name, kind in known_attacks().items():
        add_settings(parser, kind, f"{name}-")
    for action in parser._actions[1:]:
        what, _, default = str(action.help).partition(" (default: ")
        choices = f": {', '.join(action.choices)}" if action.choices else ""
        rows.append(f"| `{action.option_strings[0]}` | {what}{choices} | {default.rstrip(')')} |")
    docs = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in docs, "docs/evaluation.md should hold:\n" + "\n".join(rows)


def test_what_is_promised_names_tests_that_exist():
    root = Path(__file__).parent.parent
    promises = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?: -k (\w+))?`", promises)
    assert len(named) > 30
    for path, word in named:
        tests = re.findall(r"^def (test_\w+)", (root / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert any(word in test for test in tests), (path, word)


def test_tests_that_the_docs_select_are_there():
    """``tests/x.py -k WORD``, or of words with "or", selects at least one test for each word."""
    root = Path(__file__).parent.parent
    found = re.findall(r'`(tests/[\w/]+\.py) -k ("[^"]+"|\w+)', (root / "docs" / "reliability.md").read_text())
    assert len(found) > 5
    for name, words in found:
        tests = re.findall(r"^def (test_\w+)", (root / name).read_text(), re.MULTILINE)
        for word in words.strip('"').split(" or "):
            assert any(word in test for test in tests), (name, word)
