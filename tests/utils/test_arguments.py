from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.utils.arguments import (
    FlagParser,
    add_machine_arguments,
    add_settings,
    default_workers,
    file_or_folder,
    flags_of,
    setting,
    settings_from,
    shown_flags,
)


@dataclass(frozen=True)
class Base:
    radius: float = setting(1 / 255, "radii, of 100%", least=0, most=1, flag="radius", each=True)
    steps: int = setting(10, "iterations", least=1)
    fast: bool = setting(False, "whether it is")


@dataclass(frozen=True)
class Derived(Base):
    steps: int = setting(5, "iterations", flag="turns")
    own: int = 3  # no setting, so no flag


def parser_of(settings: type, prefix: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_settings(parser, settings, prefix)
    return parser


def test_a_subclass_names_its_own_flags_alone():
    assert [flag for flag, _ in flags_of(Base, "b-")] == ["radius", "b-steps", "b-fast"]
    assert [flag for flag, _ in flags_of(Derived, "my_d-")] == ["my-d-radius", "turns", "my-d-fast"]


def test_each_combination_of_several_values_makes_an_instance(capsys):
    parser = parser_of(Base, "b-")
    assert settings_from(parser.parse_args([]), Base, "b-") == [{"radius": 1 / 255, "steps": 10, "fast": False}]
    words = ["--radius", "0", "1", "--b-steps", "2", "--b-fast"]
    assert [Base(**settings) for settings in settings_from(parser.parse_args(words), Base, "b-")] == [
        Base(0.0, 2, True),
        Base(1.0, 2, True),
    ]
    for wrong in (["--radius", "2"], ["--b-steps", "0"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "radii, of 100% (default: 1/255)" in capsys.readouterr().out


def test_a_flag_that_is_taken_is_told():
    parser = parser_of(Base, "b-")
    with pytest.raises(OptionError, match=r"Base.radius: expected a new flag, found --radius, which is taken"):
        add_settings(parser, Base, "other-")


def test_what_an_address_hides_is_not_shown():
    args = argparse.Namespace(initial_checkpoint="https://me:secret@host/a.pth", lr=0.1, aug=["x"], output="a@b")
    assert shown_flags(args) == {
        "initial_checkpoint": "https://***@host/a.pth", "lr": 0.1, "aug": ["x"], "output": "a@b",
    }  # fmt: skip


def test_a_path_has_its_home_folder_and_a_url_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file_or_folder("~/runs") == f"{tmp_path}/runs"
    assert file_or_folder("a/~/b") == "a/~/b"
    assert file_or_folder("~root").startswith("/"), "of a user"
    url = "https://example.org/" + "x" * 500
    assert file_or_folder(url) == url


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("~nobody-has-this-name/x", "no such user's home"),
        ("x" * 300, "too long a name"),
        ("a\0b", "no file can be called"),
    ],
)
def test_a_path_that_cannot_be_is_refused_in_one_line(text: str, found: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=found):
        file_or_folder(text)


def test_no_permission_to_look_into_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)  # root may look everywhere
    with pytest.raises(argparse.ArgumentTypeError, match="found secret/x, but no permission to look there"):
        file_or_folder("secret/x")


def test_an_empty_path_is_none_unless_that_is_the_default():
    parser = FlagParser(prog="x")
    parser.add_argument("--start", type=file_or_folder, default="")
    parser.add_argument("--output", type=file_or_folder, default="out")
    parser.add_argument("results", nargs="*", type=file_or_folder)
    assert parser.parse_args(["--start", ""]).start == ""
    for words in (["--output", ""], ["--output="], ["a", ""]):
        with pytest.raises(OptionError, match="expected a path, found none"):
            parser.parse_args(words)


def test_default_workers_are_at_most_the_cores_of_this_process(monkeypatch):
    for cores, workers in ((1, 1), (3, 3), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_workers() == workers
    assert default_workers(2) == 2
    parser = FlagParser(prog="x")
    add_machine_arguments(parser)
    assert parser.parse_args([]).workers == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert parser.parse_args(["-j", "9"]).workers == 9


def test_words_of_another_command_are_a_value_and_stay_as_they_are():
    parser = FlagParser()
    parser.add_argument("--data-dir")
    parser.add_argument("--benchmark")
    args = parser.parse_args(["--data_dir", "a_b", "--benchmark", "--suite val --model a_b.py:c_d"])
    assert (args.data_dir, args.benchmark) == ("a_b", "--suite val --model a_b.py:c_d")
