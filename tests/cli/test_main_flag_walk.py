"""A walk over every verb's every flag: a valid value shows in what the run leaves, a hostile one ends in one line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from helpers.flag_values import BENCHMARK, HOSTILE, NOISE, NOT_WALKED, OTHERS, TRAIN, expected
from helpers.models import small_vit
from helpers.processes import in_a_fork, once
from helpers.records import of_released_size, whole_set
from PIL import Image

from ns_easyrobust.cli.main import VERBS
from ns_easyrobust.evaluation.results_file import append_record, read_records
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.nullspace.noise import Noise
from ns_easyrobust.utils import FlagParser, sha256_of

GROUPS = {"train": TRAIN, "benchmark": BENCHMARK, "noise": NOISE}
MODEL = {"--model": "vit_micro_patch8_32", "--num-classes": "10", "--workers": "0"}
BASE = {
    "train": MODEL | {"--data-dir": "{few}", "--output": "{out}", "--max-steps": "1", "--batch-size": "8"},
    "benchmark": MODEL
    | {
        "--data-dir": "{bench}",
        "--ckpt-path": "{ckpt}",
        "--suite": "val",
        "--input-size": "32",
        "--records": "{out}/r",
    },
    "noise": MODEL
    | {"--data-dir": "{few}/train", "--ckpt-path": "{ckpt}", "--ns-max-steps": "1", "--output": "{out}/n.pt"},
}
GIVEN = {  # what each command of the walk gives, with a value that works
    "train": ["--model", "--num-classes", "--workers", "--data-dir", "--batch-size"],
    "benchmark": ["--model", "--num-classes", "--workers", "--data-dir", "--ckpt-path", "--input-size", "--records"],
    "noise": ["--model", "--num-classes", "--workers", "--data-dir", "--ckpt-path"],
}
OTHER_BASES = {
    "doctor": "{bench} --suite val --images 1 --num-classes 10 --workers 0",
    "corrupt": "{few}/val {out}/imagenet-c --corruption contrast --severity 1 --workers 0",
    "experiment": "study -c {recipe}",
    "report": "{records} --output {out}",
    "nullspace": "{ckpt}",
    "fingerprint": "make {ckpt} -o {out}/f.safetensors",
    "export": "{ckpt} --layout timm --output {out}/a.pth",
    "launch": "{script}",
    "demo": "--output {bench}",  # holds something: refused before the long run
}
PATHS = {
    "DIR",
    "FILE",
    "PATH",
    "FILE_OR_URL",
    "FOLDER",
    "RESULTS.jsonl",
    "CKPT",
    "DATA_DIR",
    "SRC",
    "DST",
    "PATH/main.py",
    "MODEL",
}


class Flag(NamedTuple):
    verb: str
    name: str
    action: argparse.Action

    @property
    def kind(self) -> str | None:
        """Which of the hostile values fit it; None: it takes no value."""
        if self.action.nargs == 0:
            return None
        if self.action.choices:
            return "choice"
        kind = getattr(self.action.type, "__name__", "")
        if kind == "float":
            return "number"
        if kind in HOSTILE:
            return kind
        return "path" if self.action.metavar in PATHS else "text"


def flags() -> list[Flag]:
    found = []
    for verb in VERBS:
        parser = FlagParser(prog=verb)
        importlib.import_module(f"ns_easyrobust.cli.{verb}").add_arguments(parser)
        for action in parser._actions:
            name = next((o for o in action.option_strings if o.startswith("--")), action.dest)
            if name != "--help":
                found.append(Flag(verb, name, action))
    return found


FLAGS = flags()


@pytest.fixture(scope="session")
def world(tmp_path_factory, digits_dir) -> dict[str, str]:
    """What the tables' names in braces stand for."""

    def make(root: Path) -> None:
        root.mkdir()
        for split, count in (("train", 4), ("val", 2)):
            for folder in sorted((digits_dir / split).iterdir()):
                (root / "few" / split / folder.name).mkdir(parents=True)
                for image in sorted(folder.iterdir())[:count]:
                    shutil.copy(image, root / "few" / split / folder.name)
        shutil.copytree(root / "few" / "val", root / "bench" / "imagenet-val")
        save_model(small_vit(), root / "m.pth.tar", ema=small_vit(seed=1), arch="vit_micro_patch8_32")
        save_model(small_vit()[1], root / "bare.pth", layout="timm")
        measured = whole_set(root, "one", 0.6, 3, preset="easyrobust")
        for one in of_released_size([one for one in measured if "severity" not in one.protocol]):
            append_record(root / "r.jsonl", one)
        for number, ending in enumerate(("png", "png", "png", "jpg", "jpg"), start=1):
            (root / "frost").mkdir(exist_ok=True)
            Image.new("RGB", (64, 48), (40 * number,) * 3).save(root / "frost" / f"frost{number}.{ending}")
        (root / "recipe.yaml").write_text("epochs: 1\n")
        (root / "about.json").write_text("{}")
        (root / "script.py").write_text("print('a script')\n")
        os.mkfifo(root / "fifo")
        (root / "loop").symlink_to(root / "loop")
        (root / "locked").mkdir(mode=0)

    root = once(tmp_path_factory, "walk", make)
    names = {"ckpt": "m.pth.tar", "bare": "bare.pth", "records": "r.jsonl", "recipe": "recipe.yaml"}
    names |= {"about": "about.json", "script": "script.py"}
    paths = {name: str(root / file) for name, file in names.items()}
    folders = {name: str(root / name) for name in ("few", "bench", "fifo", "loop", "locked", "frost")}
    return paths | folders | {"sha": sha256_of(root / "m.pth.tar")}


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> dict[str, str]:
    """The world with an output folder and a noise of this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    value = torch.linspace(-1, 1, 1024).view(1, 16, 64)
    start = Noise(value, 0.0, 0, False, held_out=None, trace=(), config=NoiseConfig())
    start.save(tmp_path / "start.pt")
    return world | {"out": str(tmp_path / "out"), "noise": str(tmp_path / "start.pt")}


def filled(value, here):
    if isinstance(value, dict):
        return {key: filled(item, here) for key, item in value.items()}
    for name, meant in here.items() if isinstance(value, str) else ():
        value = value.replace("{" + name + "}", meant)
    return value


def test_every_flag_is_in_the_walk():
    walked = {f"{verb} {flag}" for verb, groups in GROUPS.items() for group in groups for flag in group}
    walked |= {f"{verb} {flag}" for verb, names in GIVEN.items() for flag in names}
    for verb, commands in OTHERS.items():
        walked |= {f"{verb} {word}" for command, _ in commands for word in command.split() if word.startswith("--")}
    options = {f"{flag.verb} {flag.name}": flag for flag in FLAGS if flag.action.option_strings}
    left = set(options) - walked - NOT_WALKED
    assert {name for name in left if options[name].verb not in ("launch", "demo")} == {"doctor --workers"} & left
    assert walked <= set(options) | {"doctor -j"}


@pytest.mark.parametrize(("verb", "number"), [(verb, i) for verb, groups in GROUPS.items() for i in range(len(groups))])
def test_a_valid_value_shows(verb, number, here, tmp_path):
    group = {flag: value for flag, value in GROUPS[verb][number].items() if value is not None}
    values = {flag: expected(filled_pair(value, here)) for flag, value in group.items()}
    base = {flag: filled(value, here).split() for flag, value in BASE[verb].items() if flag not in values}
    if verb == "train" and {"--epochs", "--epoch-steps"} <= set(group):
        base.pop("--max-steps")
    command = [verb, *(word for flag, words in base.items() for word in (flag, *words))]
    command += [word for flag, (words, _) in values.items() for word in (flag, *words)]
    done = in_a_fork(
        [*command, *(["--experiment", "run"] if verb == "train" and "--experiment" not in group else [])], tmp_path
    )
    assert done.returncode == 0, done.stderr
    if verb == "train":
        (left,) = (tmp_path / "out").glob("*/args.yaml")
        shown = yaml.safe_load(left.read_text())
        wanted = {flag[2:].replace("-", "_"): value for flag, (_, value) in values.items() if value is not None}
    else:
        wanted = {name: value for _, shows in values.values() for name, value in shows.items()}
    if verb == "benchmark":
        shown = [flat(json.loads(one.to_json())) for one in read_records(tmp_path / "out" / "r")]
        assert any(wanted.items() <= one.items() for one in shown), (wanted, shown)
        return
    if verb == "noise":
        noise = Noise.load(values.get("--output", (base.get("--output"), None))[0][0]).state_dict()
        shown = noise["config"] | {"held_out.n": noise["held_out"]["n"]}
    assert {name: shown[name] for name in wanted} == wanted


def filled_pair(value, here):
    return tuple(filled(item, here) for item in value) if isinstance(value, tuple) else filled(value, here)


def flat(record: dict) -> dict:
    plain = {name: value for name, value in record.items() if name not in ("protocol", "versions")}
    return plain | {
        f"protocol.{name}": value for name, value in record["protocol"].items() if not isinstance(value, list)
    }


@pytest.mark.parametrize("verb", OTHERS)
def test_other_verbs_take_their_flags(verb, here, tmp_path):
    (tmp_path / "out").mkdir()
    for command, shows in OTHERS[verb]:
        done = in_a_fork([verb, *filled(command, here).split()], tmp_path)
        assert done.returncode == 0, done.stderr
        assert shows in done.stdout


def hostile_command(flag: Flag, value: str, here: dict[str, str]) -> list[str]:
    if flag.verb in BASE:
        base = {name: filled(text, here).split() for name, text in BASE[flag.verb].items() if name != flag.name}
        words = [word for name, given in base.items() for word in (name, *given)]
    else:
        words = filled(OTHER_BASES[flag.verb], here).split()
    if not flag.action.option_strings:
        return [flag.verb, *words[1:], value]
    return [flag.verb, *words, f"{flag.name}={value}"]


def ends_in_one_line(command: list[str], where: Path) -> None:
    done = in_a_fork(command, where, seconds=20, memory=4 << 30)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ns-easyrobust ")]
    assert done.returncode in (0, 2), (command, done.stderr[-2000:])
    assert "Traceback" not in done.stdout + done.stderr, (command, done.stderr[-2000:])
    assert len(lines) == (done.returncode == 2), (command, done.stderr[-2000:])
    assert not any(len(line) > 3000 for line in lines), command
    assert "\x1b" not in done.stdout + done.stderr, command
    assert not (where / "ran").exists()


# A name like any other, and a folder that is not locked for root: the demo would write there for minutes.
MINUTES = {("demo", "\udcff"), ("demo", "{locked}/x")}
VALUED = [flag for flag in FLAGS if flag.kind is not None]


@pytest.mark.parametrize("flag", VALUED, ids=lambda flag: f"{flag.verb} {flag.name}")
@pytest.mark.stress
def test_every_hostile_value_ends_in_one_line(flag, here, tmp_path):
    for value in HOSTILE[flag.kind]:
        if (flag.verb, value) in MINUTES:
            continue
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        ends_in_one_line(hostile_command(flag, filled(value, here), here), tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_some_hostile_values_end_in_one_line(verb, here, tmp_path):
    """One value for each third flag, another one for each; all of them are in ``make stress``."""
    for flag in VALUED[::3]:
        if flag.verb == verb:
            values = [value for value in HOSTILE[flag.kind] if (verb, value) not in MINUTES]
            value = values[zlib.crc32(flag.name.encode()) % len(values)]
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            ends_in_one_line(hostile_command(flag, filled(value, here), here), tmp_path)
