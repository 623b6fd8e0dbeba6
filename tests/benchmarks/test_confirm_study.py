"""The study that confirms: the two best variants of another one, beside its references, elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from helpers.processes import load_script

from ns_easyrobust.experiments.study_file import read_study

script = load_script("confirm_study")
LABELS = ("none", "random", "permuted", "nullspace", "random, fresh", "nullspace, KL", "random, KL", "not run")
STUDY = {
    "start": "start.pth",
    "data_dir": "data",
    "seeds": [0, 1],
    "budget": {"updates": 5},
    "baseline": "none",
    "primary": {"columns": ["val"], "against": ["none", "random"]},
    "methods": {label: {"aug": "random"} if "random" in label else {} for label in LABELS},
    "benchmark": {"data_dir": "data/select", "suite": ["val"]},
}
# As a study leaves it: a line for each method and reference. The best of all is a reference; one was not run.
PRIMARY = """\
method,against,delta,method_value,against_value
random,none,31.5,91.5,60.0
permuted,none,-1.0,59.0,60.0
permuted,random,-32.5,59.0,91.5
nullspace,none,30.5,90.5,60.0
"random, fresh",none,-50.25,9.75,60.0
"random, fresh",random,-81.75,9.75,91.5
"nullspace, KL",none,10.25,70.25,60.0
"random, KL",none,10.5,70.5,60.0
not run,none,,,60.0
"""


@pytest.fixture
def done(tmp_path):
    folder = tmp_path / "variants"
    folder.mkdir()
    (folder / "primary.csv").write_text(PRIMARY)
    return folder


def test_the_two_best_variants_by_number_and_no_reference(done):
    assert script.chosen_variants(done) == ["random, KL", "nullspace, KL"]


def test_too_few_variants_are_no_choice(done):
    (done / "primary.csv").write_text("\n".join(PRIMARY.splitlines()[:7]))
    with pytest.raises(SystemExit, match="expected 2 variants at least that were run, found 1"):
        script.chosen_variants(done)


def test_references_stay_and_the_rest_is_as_it_was(done, tmp_path):
    """By the command, as the docs have it; the file that it writes is a study."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    words = [script.__file__, tmp_path / "small.yaml", done, tmp_path / "confirm.yaml"]
    subprocess.run([sys.executable, *map(str, words)], check=True, timeout=60)
    again = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stderr.splitlines()[-1].endswith("is there: expected a new file")) == (2, True)
    study = read_study(tmp_path / "confirm.yaml")
    assert list(study.methods) == ["none", "random", "permuted", "nullspace", "nullspace, KL", "random, KL"]
    assert study.methods["random, KL"] == {"aug": "random"}
    assert study.seeds == tuple(range(20, 28))
    assert study.benchmark == {"data_dir": "data/confirm", "suite": ["val"]}
    content = yaml.safe_load((tmp_path / "confirm.yaml").read_text())
    changed = {key for key in content if content[key] != STUDY.get(key)}
    assert changed == {"question", "protocol", "seeds", "methods", "benchmark"}
    assert "small.yaml" in content["question"]
    assert "\n" not in content["protocol"]  # a report would break its lines there
    assert "8 fresh seeds" in content["protocol"]


def test_fewer_seeds_are_said_in_the_protocol():
    content = script.confirming(STUDY, "small.yaml", ["random, KL"], seeds=2)
    assert content["seeds"] == [20, 21]
    assert "2 fresh seeds" in content["protocol"]
    assert STUDY["seeds"] == [0, 1]
