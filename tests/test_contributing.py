"""CONTRIBUTING's examples, as packages beside the installed one: what they register is used like the project's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchattacks

from ns_easyrobust.errors import OptionError
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.checkpoint_save import save_model

CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", CONTRIBUTING, re.DOTALL | re.MULTILINE)
GROUP = re.findall(r'^\[project.entry-points."(.*)"\]', CONTRIBUTING, re.MULTILINE)


@pytest.fixture
def site(tmp_path):
    """A folder as pip leaves it, with the examples, and a plugin that cannot be imported."""
    names = [re.search(r'(?:name = |register_augmentation\(|Benchmark\()"(\w+)"', example)[1] for example in EXAMPLES]
    assert names == ["mifgsm", "mirror", "half", "mine"]
    (information := tmp_path / "site" / "toy-1.0.dist-info").mkdir(parents=True)
    for name, example in zip(names, EXAMPLES, strict=True):
        (tmp_path / "site" / f"toy_{name}.py").write_text(example, encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"{name} = toy_{name}" for name in names]
    text = "\n".join([f"[{GROUP[0]}]", *lines, "broken = toy_that_is_not_there", ""])
    (information / "entry_points.txt").write_text(text, encoding="utf-8")
    return tmp_path / "site"


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parent.parent)])}
    return subprocess.run([sys.executable, "-m", "ns_easyrobust", *words], cwd=site, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip


def test_attack_and_benchmark_are_suites_and_the_attack_computes_what_torchattacks_does(
    site, trained, digits, digits_dir
):
    model, (images, labels) = trained, (part[:8] for part in digits)
    pixels = images * 0.5 + 0.5
    scope: dict[str, object] = {"__name__": "__main__"}
    exec(compile(EXAMPLES[0].replace("@register_attack\n", ""), "CONTRIBUTING.md", "exec", dont_inherit=True), scope)
    ours = scope["MIFGSM"](epsilon=8 / 255, steps=4)(model, pixels, labels, range(8))
    theirs = torchattacks.MIFGSM(model, eps=8 / 255, alpha=2 / 255, steps=4, decay=1.0)(pixels, labels)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.equal(ours, pixels)

    save_model(model, site / "c.pth.tar")
    for name in ("imagenet-val", "my-photographs"):
        (site / "data").mkdir(exist_ok=True)
        (site / "data" / name).symlink_to(digits_dir / "imagenet-val")
    done = run(site, "benchmark", "--model", "vit_micro_patch8_32", "--num-classes", "10", "--ckpt-path", "c.pth.tar",
               "--data-dir", "data", "--suite", "mine", "val", "mifgsm", "--mifgsm-epsilon", "0.01", "0.06",
               "--mifgsm-steps", "3", "--subset", "first:60", "-j", "0", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "plugin broken (toy_that_is_not_there) is left out: ModuleNotFoundError" in done.stderr
    clean, *attacked, mine = (record for record in read_records(site / "results.jsonl") if record.metric == "top1")
    assert (clean.suite, mine.suite, mine.correct) == ("imagenet-val", "mine", clean.correct)
    assert not pixels.requires_grad
    assert not ours.requires_grad
    assert [(r.suite, r.protocol["epsilon"], r.protocol["steps"]) for r in attacked] == [
        ("mifgsm", 0.01, 3),
        ("mifgsm", 0.06, 3),
    ]
    assert attacked[1].correct < attacked[0].correct <= clean.correct
    assert "mifgsm top1" in done.stdout
    assert "mine top1" in done.stdout
    assert re.search("my-photographs +ok", run(site, "doctor", "data", "--num-classes", "10").stdout)


def test_the_augmentations_train(site, digits_dir):
    words = (
        f"--aug half,mirror --mirror-weight 0.5 --model vit_micro_patch8_32 --num-classes 10 --data-dir {digits_dir} "
        "-b 32 --epochs 1 --epoch-steps 2 --ns-max-steps 3 -j 0 --output out --experiment half --device cpu"
    )
    done = run(site, "train", *words.split())
    assert done.returncode == 0, done.stderr
    assert len((site / "out" / "half" / "noise.csv").read_text().splitlines()) == 2


def test_a_name_that_is_taken_is_refused():
    scope: dict[str, object] = {"__name__": "__main__"}
    with pytest.raises(OptionError, match="attack 'fgsm': expected a new name, found one that is taken"):
        exec(compile(EXAMPLES[0].replace('"mifgsm"', '"fgsm"'), "CONTRIBUTING.md", "exec", dont_inherit=True), scope)
