import argparse

import pytest
import torch

from ns_easyrobust.cli import export
from ns_easyrobust.errors import CheckpointError, OutputError, UserError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.models.normalization import with_normalization

ARCH = "vit_micro_patch8_32"


@pytest.fixture
def checkpoint(tmp_path):
    model = with_normalization(models.build(ARCH, num_classes=5), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    path = tmp_path / "model_best.pth.tar"
    save_model(model, path, ema=model, arch=ARCH)
    return path


def run(*flags):
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    export.run(parser.parse_args([str(flag) for flag in flags]))


def test_writes_beside_the_source_and_says_so(checkpoint, tmp_path, capsys):
    run(checkpoint, "--layout", "timm")
    output = tmp_path / "model_best.timm.pth.tar"
    assert "cls_token" in torch.load(output)["state_dict"]
    printed = capsys.readouterr().out
    assert f"wrote {output} (layout timm: state_dict, state_dict_ema)" in printed
    assert "mean 0.4 0.5 0.6, std 0.2 0.25 0.3, from the checkpoint" in printed


def test_refuses_an_existing_file_without_overwrite(checkpoint, tmp_path):
    output = tmp_path / "out.pth"
    output.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        run(checkpoint, "--layout", "easyrobust", "--output", output)
    assert output.read_text() == "precious"
    run(checkpoint, "--layout", "easyrobust", "--output", output, "--overwrite")
    assert "0.mean" in torch.load(output)["state_dict"]


def test_never_overwrites_its_source(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(OutputError, match="another file than the source"):
        run(checkpoint, "--layout", "timm", "--output", checkpoint, "--overwrite")
    assert checkpoint.read_bytes() == before


def test_flags_reach_the_export(tmp_path, capsys):
    path = tmp_path / "bare.pth"
    torch.save(models.build(ARCH, num_classes=5).state_dict(), path)
    run(path, "--layout", "easyrobust", "--mean", 0.1, 0.2, 0.3, "--std", 0.5, "--output", tmp_path / "a")
    assert torch.load(tmp_path / "a")["state_dict"]["0.mean"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert "from the caller" in capsys.readouterr().out
    run(path, "--layout", "easyrobust", "--model", ARCH)
    content = torch.load(tmp_path / "bare.easyrobust.pth.tar")
    assert content["arch"] == ARCH
    assert content["state_dict"]["0.std"].tolist() == [0.5] * 3
    assert "from the timm config" in capsys.readouterr().out


def test_missing_source_writes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        run(tmp_path / "none.pth", "--layout", "timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/a/model_best.pth.tar", "runs/a/model_best.timm.pth.tar"),
        ("ViT.v2.npz", "ViT.v2.timm.pth.tar"),
        ("weights", "weights.timm.pth.tar"),
        ("http://host/x/model_best.pth.tar?token=a/b", "model_best.timm.pth.tar"),
        ("http://host/", "checkpoint.timm.pth.tar"),
        ("http://me:secret@host", "checkpoint.timm.pth.tar"),
        ("http://me:secret@host/a@b.pth#x/y", "a@b.timm.pth.tar"),
    ],
)
def test_default_output(source, name):
    assert export.default_output(source, "timm").as_posix() == name


def test_units_and_names_that_no_host_loads_write_nothing(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(models.build(ARCH, num_classes=5).state_dict(), path)
    for flags, match in (
        (["--mean", 123.7, "--std", 58.4], "divide by 255"),
        (["--mean", 0.5, "--std", 0], "std > 0"),
        (["--mean", 0.5, "--std", 0.5, "--model", "swin_micro_patch2_32"], "does not fit swin"),
    ):
        with pytest.raises(UserError, match=match):
            run(path, "--layout", "easyrobust", *flags)
    assert [file.name for file in tmp_path.iterdir()] == ["bare.pth"]


def test_outputs_that_cannot_be_are_one_line(checkpoint, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for output, match in (
        (tmp_path / "loop", "expected no file there"),
        (tmp_path / "none" / "c.pth", "No such file"),
        (checkpoint / "c.pth", "Not a directory"),
    ):
        with pytest.raises(OutputError, match=match):
            run(checkpoint, "--layout", "timm", "--output", output)
