"""The verb ``fingerprint``: files made and compared, verdicts, and what is refused in one line."""

from __future__ import annotations

import os
import re

import pytest
import torch
from helpers.models import small_vit
from PIL import Image
from torchvision.transforms.functional import to_tensor

from ns_easyrobust.cli import main as cli
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace import PatchCovariance, hidden_noise, load_fingerprint


def verb(*words: object) -> int:
    return cli.main(["fingerprint", *map(str, words)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model, one derived from it, and 20 others, in this folder."""
    monkeypatch.chdir(tmp_path)
    model = small_vit()
    save_model(model, "mine.pth.tar")
    with torch.no_grad():
        model[1].patch_embed.proj.weight.add_(0.001 * torch.randn(64, 3, 8, 8))
    save_model(model, "theirs.pth.tar", ema=small_vit(seed=50))
    os.mkdir("others")
    for seed in range(1, 21):
        torch.save({"patch_embed.proj.weight": small_vit(seed=seed)[1].patch_embed.proj.weight}, f"others/{seed}.pth")
    torch.save({"patch_embed.proj.weight": torch.randn(192, 3, 8, 8)}, "full.pth")
    torch.save({"patch_embed.proj.weight": torch.randn(16, 3, 4, 4)}, "small.pth")
    torch.save({"conv1.weight": torch.randn(64, 3, 7, 7)}, "cnn.pth")
    return tmp_path


def test_a_fingerprint_stands_for_its_model(here, capsys):
    assert verb("make", "mine.pth.tar", "-o", "mine.fp", "--name", "my model") == 0
    assert "row space of dimension 64 of 192, patches of 8 pixels, std 0.5 0.5 0.5" in capsys.readouterr().out
    found = load_fingerprint("mine.fp")
    assert (found.name, found.rank, found.std) == ("my model", 64, (0.5, 0.5, 0.5))
    wanted = torch.linalg.qr(small_vit()[1].patch_embed.proj.weight.detach().double().flatten(1).T).Q
    assert torch.allclose(found.basis.T @ found.basis, wanted @ wanted.T, atol=1e-5)
    assert verb("make", "theirs.pth.tar") == 0
    assert (here / "theirs.pth.tar.fingerprint.safetensors").is_file()
    printed = []
    for claimed, suspect in (("mine.fp", "theirs.pth.tar.fingerprint.safetensors"), ("mine.pth.tar", "theirs.pth.tar")):
        capsys.readouterr()
        assert verb("compare", claimed, suspect, "--independent", "others", "--std", ".5") == 0
        printed.append(capsys.readouterr().out.splitlines()[2:])
    assert printed[0] == printed[1]
    text = "\n".join(printed[0])
    assert "in pixels; uniformly random ones would have 21.33 +- 0.31" in text
    assert "20 independent models: likeness to A from 0." in text
    assert "p = 0.0476" in text  # 1 / 21
    assert "verdict at 0.05: derived" in text
    assert float(re.search(r"S = ([\d.]+) of 64", text)[1]) > 63


def test_verdicts(here, capsys):
    assert verb("compare", "mine.pth.tar", "others/1.pth", "--independent", "others", "--statistic", "rows") == 0
    out = capsys.readouterr().out
    assert "19 independent models (1 left out" in out
    assert "in normalised patches (some normalisation is unknown)" in out
    assert "S / sqrt(k1 k2)" in out
    assert "not told apart from independent" in out
    assert verb("compare", "mine.pth.tar", "theirs.pth.tar", "--independent", "others/1.pth", "others/2.pth") == 0
    out = capsys.readouterr().out
    assert "cannot be said: with 2 independent models p cannot be below 0.333; give 19 or more" in out
    assert "parametric" not in out
    assert verb("compare", "mine.pth.tar", "theirs.pth.tar", "--ema", "--independent", "others") == 2  # mine has none
    assert "expected EMA weights" in capsys.readouterr().err
    assert verb("compare", "mine.pth.tar", "mine.pth.tar", "--alpha", "0.2") == 0
    assert "the same, bit by bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "full.pth"], "full.pth: expected a patch embedding with a nullspace, found rank 192 of 192"),
        (["make", "cnn.pth"], "cnn.pth: expected one patch embedding"),
        (["make", "none.pth"], "no checkpoint at none.pth"),
        (["make", "mine.pth.tar", "-o", "full.pth"], "full.pth: expected no file there, found one"),
        (["compare", "mine.pth.tar", "small.pth"], "small.pth: expected patches of 8 pixels and 192 numbers"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--independent", "small.pth"], "small.pth: expected patches of"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--independent", "mine.pth.tar"], "found only their patch"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--independent", "empty"], "empty: expected fingerprints"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--alpha", "2"], "expected a number between"),
        (["compare", "mine.pth.tar", "others/1.pth", "--std", ".5", ".5"], "std: expected 3 positive numbers"),
        (["compare", "mine.pth.tar"], "required: B"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--statistic", "images"], "--data-dir: expected one with"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--data-dir", "empty"], "--data-dir: expected one with"),
        (["compare", "mine.pth.tar", "theirs.pth.tar", "--statistic", "images", "--data-dir", "empty"],
         "empty: expected"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(here, capsys, words, message):
    (here / "empty").mkdir()
    before = (here / "full.pth").read_bytes()
    assert verb(*words) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("ns-easyrobust fingerprint: ")]
    assert message in line
    assert captured.out == ""
    assert (here / "full.pth").read_bytes() == before


def test_an_output_is_replaced_when_asked(here, capsys):
    (here / "mine.fp").write_text("old")
    assert verb("make", "mine.pth.tar", "-o", "mine.fp", "--overwrite") == 0
    assert load_fingerprint("mine.fp").rank == 64


def test_noise_that_images_hide_evades_the_weighted_likeness_and_not_the_one_on_images(here, digits_dir, capsys):
    images = torch.stack(
        [to_tensor(Image.open(path).convert("RGB")) for path in sorted(digits_dir.rglob("*.png"))[:40]]
    )
    model = small_vit()
    weight = model[1].patch_embed.proj.weight
    noise = hidden_noise(weight, PatchCovariance.of(images, 8), 0.05, std=(0.5,) * 3, generator=torch.Generator())
    with torch.no_grad():
        weight += noise
    save_model(model, "evading.pth.tar")
    found = []
    on_images = f"--statistic images --data-dir {digits_dir} --input-size 32 --crop-pct 1 --images 40".split()
    for flags in ([], on_images):
        assert verb("compare", "mine.pth.tar", "evading.pth.tar", *flags) == 0
        found.append(float(re.search(r"likeness = ([\d.]+)", capsys.readouterr().out)[1]))
    assert found[0] < 0.5
    assert found[1] > 0.95
