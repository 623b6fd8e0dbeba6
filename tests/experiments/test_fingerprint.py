"""The experiment ``fingerprint`` on small models of known origin: lines, going on, and refusals in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.models import small_vit

from ns_easyrobust.cli import main as cli
from ns_easyrobust.experiments import fingerprint_files, split_ending
from ns_easyrobust.experiments.fingerprint_measure import Views
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.nullspace import PatchCovariance, fingerprint_of, likeness


def saved(path, model):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, arch="vit_micro_patch8_32", start_embedding=small_vit(seed=9)[1].patch_embed.proj.weight)


@pytest.fixture
def pool(tmp_path, trained, monkeypatch):
    """One claimed model, one derived from it, six others of two recipes."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "models" / "claimed" / "mine.pth.tar", trained)
    other = small_vit()
    other.load_state_dict(trained.state_dict())
    with torch.no_grad():
        other[1].patch_embed.proj.weight.mul_(1.01).add_(1e-4)
    saved(tmp_path / "models" / "derived" / "scaled" / "mine" / "a.pth.tar", other)
    for seed in range(1, 7):
        saved(tmp_path / "models" / "independent" / f"recipe{seed % 2}" / f"{seed}.pth.tar", small_vit(seed=seed))
    return tmp_path / "models"


@pytest.fixture
def command(pool, digits_dir):
    return (
        f"experiment fingerprint models --data-dir {digits_dir} --input-size 32 --crop-pct 1 --images 20 "
        "--synthesis-images 16 -j 0 --alpha 0.25 --attacked mine -o out"
    ).split()


def test_models_of_one_origin_are_told_from_others(command, tmp_path, monkeypatch, capsys, draw_no_more):
    draw_no_more()
    assert cli.main(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "fingerprint.jsonl").read_text().splitlines()]
    assert lines[0]["protocol"]["input_dim"] == 192
    models = {line["name"]: line for line in lines if line.get("what") == "model"}
    assert len(models) == 8
    claimed, derived = models["claimed/mine.pth.tar"], models["derived/scaled/mine/a.pth.tar"]
    assert len(claimed["copies"]) == 47  # 8 symmetries of a square times 6 orders of channels, but for the identity
    assert all(0 <= value < 1e-9 for value in claimed["mixed"])  # 1 - likeness, of float64 and not of 6 places
    assert claimed["right"] > 10  # of 20: it is trained
    assert abs(derived["right"] - claimed["right"]) <= 1
    pairs = {line["name"]: line["likeness"] for line in lines if line.get("what") == "pairs"}
    mine = pairs["claimed/mine.pth.tar"]
    assert len(mine) == 7
    others = [value for name, value in mine.items() if name.startswith("independent")]
    for metric in range(3):
        assert mine["derived/scaled/mine/a.pth.tar"][metric] > 0.98
        assert mine["derived/scaled/mine/a.pth.tar"][metric] > max(value[metric] for value in others) + 0.01
    assert len(pairs["independent/recipe0/2.pth.tar"]) == 5
    (attack,) = [line for line in lines if line.get("what") == "attack"]
    assert attack["steps"][0]["likeness"] == [1, 1, 1]
    assert attack["steps"][0]["unchanged"] == 20
    assert attack["steps"][-1]["likeness"][0] < 0.6
    text = " ".join(capsys.readouterr().out.split())
    assert "Called derived by weighted, by rank at 0.25: all of scaled (1/1 [21, 100]%)." in text
    assert "15 pairs of independently trained models have S/k" in text

    before = (tmp_path / "out" / "fingerprint.jsonl").read_bytes()
    monkeypatch.setattr(Views, "likeness", None)
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "fingerprint.jsonl").read_bytes() == before


def test_symmetric_copies_are_what_turned_pixels_would_show():
    weight = small_vit(seed=3)[1].patch_embed.proj.weight.detach().double()
    found = fingerprint_of(weight, std=(0.5,) * 3)
    images = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    covariance = PatchCovariance.of(images, 8)
    copies = Views("pixel", covariance).copies(found)
    for moved in (weight.flip(3), weight.rot90(1, (2, 3)), weight.flip(1), weight.transpose(2, 3)[:, [1, 2, 0]]):
        other = fingerprint_of(moved, std=(0.5,) * 3)
        metric = covariance.root("pixel")
        wanted = [
            likeness(*(each.rows("pixel", *more, weighted=weighted) for each in (found, other)))
            for weighted, more in ((False, ()), (True, ()), (True, (metric,)))
        ]
        assert any(pair == pytest.approx(wanted, abs=2e-6) for pair in copies)
    assert max(pair[0] for pair in copies) < 0.9


def test_equal_weights_behind_other_normalisations_are_other_fingerprints():
    weight = small_vit(seed=3)[1].patch_embed.proj.weight.detach()
    one, other = (fingerprint_of(weight, std=std) for std in ((0.5, 0.5, 0.5), (0.2, 0.5, 0.9)))
    views = Views("pixel", PatchCovariance.of(torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 8))
    assert views.likeness(one, one) == [1, 1, 1]
    wanted = likeness(one.rows("pixel"), other.rows("pixel"))
    assert wanted < 0.99
    assert views.likeness(one, other)[0] == pytest.approx(wanted, abs=1e-6)


def test_other_weights_are_not_gone_on_with(command, pool, tmp_path, capsys, draw_no_more):
    draw_no_more()
    del command[command.index("--attacked") : command.index("-o")]
    assert cli.main(command) == 0
    before = (tmp_path / "out" / "fingerprint.jsonl").read_bytes()
    capsys.readouterr()
    assert cli.main([*command, "--model-kwargs", "num_heads=2"]) == 2
    assert "model_kwargs: expected {}, with which out was begun, found {'num_heads': 2}" in capsys.readouterr().err
    path = pool / "claimed" / "mine.pth.tar"
    content = torch.load(path, weights_only=True)
    for name, each in content["state_dict"].items():
        if "blocks" in name:
            each.zero_()  # the patch embedding stays
    torch.save(content, path)
    assert cli.main(command) == 2
    assert "models_sha256: expected" in capsys.readouterr().err
    assert (tmp_path / "out" / "fingerprint.jsonl").read_bytes() == before


@pytest.mark.stress
def test_moving_averages_and_larger_models_are_measured_when_asked(
    command, pool, tmp_path, trained, capsys, draw_no_more
):
    draw_no_more()
    del command[command.index("--attacked") : command.index("-o")]
    assert cli.main([*command, "--use-ema"]) == 2
    assert "expected EMA weights" in capsys.readouterr().err
    for path in sorted(pool.rglob("*.tar")):
        save_model(small_vit(seed=77), path, ema=small_vit(seed=int(path.stem[0])) if path.stem[0].isdigit() else
                   trained, arch="vit_micro_patch8_32")  # fmt: skip
    command[command.index("--input-size") + 1] = "64"
    assert cli.main([*command, "--use-ema", "--img-size", "64"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "fingerprint.jsonl").read_text().splitlines()]
    claimed = next(line for line in lines if line.get("name") == "claimed/mine.pth.tar")
    assert claimed["n"] == 20  # judged on larger images, which the model of the checkpoint does not take
    assert claimed["digest"] == fingerprint_of(trained[1].patch_embed.proj.weight).digest[:16]
    assert (lines[0]["protocol"]["ema"], lines[0]["protocol"]["img_size"]) == (True, 64)


def test_a_name_is_cut_at_the_endings_of_checkpoints_alone():
    for name, wanted in (
        ("a.pth.tar", ("a", ".pth.tar")),
        ("a.v2.pth", ("a.v2", ".pth")),
        ("vit_v1.5.pth", ("vit_v1.5", ".pth")),
        ("mine.pth.tar.fingerprint.safetensors", ("mine", ".pth.tar.fingerprint.safetensors")),
        (".pth", (".pth", "")),
        ("weights", ("weights", "")),
    ):
        assert split_ending(f"folder.pt/{name}") == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda models: shutil.copy(models / "claimed" / "mine.pth.tar", models / "claimed" / "mine.pth"),
         "expected one claimed model called mine, found"),
        (lambda models: shutil.rmtree(models / "independent"), "found no independent"),
        (lambda models: shutil.rmtree(models / "independent" / "recipe0"), "expected 4 models or more, found 3"),
        (lambda models: (models / "derived" / "scaled" / "mine").rename(models / "derived" / "scaled" / "x"),
         "where NAME is one of mine"),
        (lambda models: torch.save({"patch_embed.proj.weight": torch.randn(16, 3, 4, 4)}, models / "claimed" / "b.pt"),
         "Only models of the same patches can be compared"),
        (lambda models: torch.save({"patch_embed.proj.weight": torch.randn(192, 3, 8, 8)}, models / "claimed" / "b.pt"),
         "expected a patch embedding with a nullspace"),
        (lambda models: (models / "claimed" / "mine.pth.tar").rename(models / "claimed" / "yours.pth.tar"),
         "where NAME is one of yours"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_pool_ends_in_one_line(command, pool, tmp_path, change, message, capsys):
    change(pool)
    assert cli.main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ns-easyrobust experiment: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_links_to_folders_around_them_are_read_once(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.pth").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.pth").touch()
    for link, target in ((inner / "loop", tmp_path), (inner / "again", inner), (tmp_path / "z", tmp_path / "other")):
        link.symlink_to(target)
    assert fingerprint_files(tmp_path) == [inner / "a.pth", tmp_path / "other" / "b.pth"]
    assert fingerprint_files(tmp_path / "z") == [tmp_path / "z" / "b.pth"]


def test_flags_that_fit_nothing_end_in_one_line(command, tmp_path, capsys):
    command[command.index("mine")] = "yours"
    assert cli.main(command) == 2
    assert "--attacked: expected some of mine, found yours" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert cli.main([*command, "--device", "cuda"]) == 2
        assert "device cuda: expected a GPU" in capsys.readouterr().err
    del command[command.index("--attacked") : command.index("-o")]
    del command[command.index("--input-size") : command.index("--crop-pct")]
    assert cli.main(command) == 2
    assert "--input-size: expected the side" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
