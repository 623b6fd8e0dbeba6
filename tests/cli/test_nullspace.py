"""The verb ``nullspace``: names, checkpoint files, the table and its CSV."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import timm
import torch
from helpers.models import small_vit

from ns_easyrobust.cli import main as cli
from ns_easyrobust.errors import CheckpointError
from ns_easyrobust.experiments import patch_rows
from ns_easyrobust.experiments.patch_rows import PUBLISHED_DIMENSIONS, architecture_row, checkpoint_row
from ns_easyrobust.models import checkpoints
from ns_easyrobust.models.checkpoint_save import save_model


def verb(*flags: object) -> int:
    return cli.main(["nullspace", *map(str, flags)])


def cells(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(name)).split()


def test_random_weights_follow_rank_nullity_and_leave_the_generators_alone(capsys):
    state = torch.get_rng_state()
    assert verb("vit_tiny_patch16_224", "vit_micro_patch8_32") == 0
    assert torch.equal(state, torch.get_rng_state())
    output = capsys.readouterr().out
    first = cells(output, "vit_tiny")
    assert first[1:7] == ["random", "16", "768", "192", "576", "576"]
    assert 0.1 < float(first[7]) < 1
    assert first[8] == "-"
    assert cells(output, "vit_micro")[1:7] == ["random", "8", "192", "64", "128", "-"]
    assert "random weights" in output
    assert "arXiv:2403.10476" in output
    assert "checkpoint files" not in output
    assert architecture_row("vit_micro_patch8_32") == architecture_row("vit_micro_patch8_32")


def test_without_a_model_it_is_the_papers_table(monkeypatch, capsys):
    asked = []

    def row(name, **options):
        asked.append(name)
        return patch_rows.Row(name, "random", 16, 768, 192, 576, PUBLISHED_DIMENSIONS[name], 0.5, None)

    monkeypatch.setattr("ns_easyrobust.experiments.architecture_row", row)
    assert verb() == 0
    assert asked == list(PUBLISHED_DIMENSIONS)
    assert list(PUBLISHED_DIMENSIONS.values()) == [576, 2688, 384, 2304, 2, 0, 2048, 0]
    lines = capsys.readouterr().out.splitlines()[:9]
    assert len({len(line) for line in lines}) == 1  # aligned


@pytest.mark.parametrize("layout", ["easyrobust", "timm"])
def test_checkpoint_file(tmp_path, capsys, layout):
    model, averaged = small_vit(), small_vit(seed=1)
    with torch.no_grad():
        averaged[1].patch_embed.proj.weight[32:] = averaged[1].patch_embed.proj.weight[:32]
    save_model(model, tmp_path / "model.pth", ema=averaged, layout=layout)
    assert verb(tmp_path / "model.pth") == 0
    output = capsys.readouterr().out
    assert cells(output, "model.pth")[1:7] == ["state_dict", "8", "192", "64", "128", "-"]
    assert "stride" in output
    assert verb("--ema", tmp_path / "model.pth") == 0
    row = cells(capsys.readouterr().out, "model.pth")
    assert row[1:7] == ["state_dict_ema", "8", "192", "64", "160", "-"]
    assert float(row[8]) < 1e-6 < float(row[7])


def test_jax_file_is_transposed_as_timm_does(tmp_path, capsys):
    weight = small_vit()[1].patch_embed.proj.weight.detach()
    np.savez(tmp_path / "vit.npz", **{"embedding/kernel": weight.permute(2, 3, 1, 0).numpy(), "cls": np.zeros(3)})
    torch.save({"patch_embed.proj.weight": weight}, tmp_path / "vit.pth")
    jax, ours = (checkpoint_row(tmp_path / f"vit.{form}") for form in ("npz", "pth"))
    assert (jax.weights, jax.patch_size, jax.embed_dim, jax.nullity) == ("npz", 8, 64, 128)
    assert jax.smallest_kept == pytest.approx(ours.smallest_kept, rel=1e-9)
    assert verb("--ema", tmp_path / "vit.npz") == 2
    assert "has only raw ones" in capsys.readouterr().err
    np.savez(
        tmp_path / "hybrid.npz",
        **{"embedding/kernel": np.zeros((1, 1, 8, 4)), "conv_root/kernel": np.zeros(3)},
    )
    with pytest.raises(CheckpointError, match="found conv_root/kernel"):
        checkpoint_row(tmp_path / "hybrid.npz")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["vit_tny_patch16_224"],
            r"expected a name .* Did you mean vit_tiny_patch16_224.* path of a checkpoint file",
        ),
        (["missing.pth"], r"no checkpoint at missing\.pth"),
        (["resnet18"], "ResNet has no patch embedding"),
        (["--pretrained", "vit_micro_patch8_32"], "expected pretrained weights, found none published"),
        (["--pretrained", "missing.pth"], "found only checkpoint files"),
        (["--ema", "vit_micro_patch8_32"], "expected a checkpoint file among the models"),
        (["--rtol", "2", "vit_micro_patch8_32"], "rtol: expected"),
        (["--space", "pixels", "vit_micro_patch8_32"], "pixels"),
    ],
)
def test_mistakes_end_in_one_line(capsys, flags, message):
    import re

    assert verb(*flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("ns-easyrobust nullspace: ")]
    assert re.search(message, line)


def test_pretrained_weights(tmp_path, monkeypatch, capsys):
    """Those that arrive are told from random ones; those that do not are one line."""
    model = timm.create_model("vit_tiny_patch16_224")
    with torch.no_grad():  # as trained: two directions lost
        model.patch_embed.proj.weight[-2:] = model.patch_embed.proj.weight[:2]
    torch.save({"model": model.state_dict()}, tmp_path / "published.pth")
    monkeypatch.setattr(checkpoints, "published_url", lambda vit: f"file://{tmp_path}/published.pth")
    assert verb("--pretrained", "vit_tiny_patch16_224") == 0
    output = capsys.readouterr().out
    assert cells(output, "vit_tiny")[1:7] == ["pretrained", "16", "768", "192", "578", "576"]
    assert "random" not in output
    monkeypatch.setattr(checkpoints, "published_url", lambda vit: "http://127.0.0.1:9/none.pth")
    assert verb("--pretrained", "vit_tiny_patch16_224") == 2
    assert "refused" in capsys.readouterr().err


def test_csv(tmp_path, capsys):
    path = tmp_path / "table.csv"
    assert verb("vit_tiny_patch16_224", "vit_micro_patch8_32", "--csv", path) == 0
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["nullspace dim"] for row in rows] == ["576", "128"]
    assert [row["paper"] for row in rows] == ["576", ""]
    assert float(rows[0]["smallest kept"]) == architecture_row("vit_tiny_patch16_224").smallest_kept
    path.write_text("mine")
    assert verb("vit_micro_patch8_32", "--csv", path) == 2
    assert path.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert verb("vit_micro_patch8_32", "--csv", path, "--overwrite") == 0
    assert path.read_text().startswith("model,weights,patch,")
