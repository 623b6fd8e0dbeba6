from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.utils.arguments import add_settings, flags_of, setting, settings_from


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
