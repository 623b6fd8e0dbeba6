"""Recipes that nobody meant to write: each ends in settings or in one line, in bounded time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ns_easyrobust.errors import OptionError, UserError
from ns_easyrobust.training.options import parse_args

ANY = settings(
    derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = st.sampled_from(
    [
        *":-[]{},#&*!|>'\"\n\t~1\x85\x00é",
        *("lr", "epochs", "output", "amp", "mean", "aug", "lr: ", "output: ", "\n ", "- a", "<<", "&a", "*a"),
        *("!!python/object:os.system", "!!bool", ".nan", "1e999", "true", "null", "2001-99-99", "0x1"),
    ]
)


def parsed(folder: Path, text: str | bytes) -> argparse.Namespace:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return parse_args(["-c", str(path), "--model", "x", "--data-dir", "y"])


def ends(folder: Path, text: str | bytes) -> None:
    try:
        parsed(folder, text)
    except UserError as error:
        line = str(error)
    else:
        return
    assert len(line.splitlines()) == 1
    assert len(line) < 3000


@ANY
@given(text=st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=30).map(" ".join), st.binary(max_size=40)))
def test_any_text_ends(tmp_path: Path, text: str | bytes) -> None:
    ends(tmp_path, text)


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGES = "a: &a {x1: 1, x2: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[" * 5000, "nested too deeply"),
        (_BOMB, "more than 100000 values"),
        (_MERGES, "more than 100000 values"),
        ("lr: 1\nlr: 2", "'lr' twice, line 2"),
        ("batch-size: 8\nbatch_size: 16", "batch_size in two spellings"),
        ("lr: !!python/object/apply:os.system [ls]", "no YAML, line 1"),
        ("lr: .nan", "expected a number between 0 and"),
        ("lr: 2001-01-01", "--lr"),
        ("lr: {a: 1}", "lr: expected numbers or text"),
        ("\tlr: 1", "no YAML, line 1"),
        ("1: 2\nnull: 3", "names of flags, found 1, None"),
        (b"lr: 1".decode().encode("utf-16"), "no YAML|decode"),
        ("#" * (2**18 + 1), "more than 262144 bytes"),
        ("a: !" + "x" * 200_000, "could not determine a constructor"),
        ("output: ~nobody-has-this-name/x", "no such user's home"),
        ("text", "found a str"),
        ("experiment: ~/x", "experiment: expected a name within --output"),
        ("experiment: yes", "experiment: expected numbers or text, found True"),
        ("val-split: no", "val_split: expected numbers or text, found False"),
        ("opt: {a: b}", "opt: expected numbers or text"),
        ("mean: [0.5, [0.5], 0.5]", "mean: expected numbers or text"),
        ('experiment: "a\\ud800b"', "experiment: expected numbers or text"),
        ("experiment: !!binary aGVsbG8=", "experiment: expected numbers or text"),
        ("amp: 'false'", "amp: expected true or false, found 'false'"),
        ("no-aug: 1", "no_aug: expected true or false, found 1"),
        ("experiment: [a, b]", "experiment: expected one value, found 2"),
    ],
)
def test_what_is_no_recipe_is_told_in_one_line(tmp_path: Path, text: str | bytes, found: str) -> None:
    started = time.monotonic()
    with pytest.raises(OptionError, match=found) as raised:
        parsed(tmp_path, text)
    assert len(str(raised.value)) < 500
    assert time.monotonic() - started < 5


def test_a_home_folder_in_a_recipe_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a folder called ~; a mark at the beginning of the file, as Windows writes it, is none of its text."""
    monkeypatch.setenv("HOME", str(tmp_path))
    args = parsed(tmp_path, "\ufeffoutput: ~/runs\ninitial-checkpoint: ~/vit.pth\r\nlr: 1/1000")
    assert args.output == f"{tmp_path}/runs"
    assert args.initial_checkpoint == f"{tmp_path}/vit.pth"
    assert args.lr == 0.001


def test_false_is_none_of_it_as_in_timms_scripts(tmp_path: Path) -> None:
    """timm sets False itself, which counts as 0; a flag without a default stays out."""
    args = parsed(tmp_path, "color-jitter: false\nhflip: no\naa: off\namp: false\nno-aug: false\nexperiment: no")
    assert (args.color_jitter, args.hflip, args.aa, args.amp, args.no_aug, args.experiment) == (
        0,
        0,
        None,
        False,
        False,
        "",
    )


def test_a_value_may_begin_with_a_hyphen(tmp_path: Path) -> None:
    assert parsed(tmp_path, "experiment: -x\ntrain-split: --lr").experiment == "-x"
