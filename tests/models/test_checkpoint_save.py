"""Every checkpoint form in, safely; two forms out, atomically."""

import errno
import os

import pytest
import timm
import timm.models
import torch
from helpers.checkpoints import (
    ARCH,
    CLASSES,
    EXTRA,
    MEAN,
    STD,
    easyrobust_benchmark_model,
    logits,
    make_model,
    make_vit,
    one_line,
    same_states,
    timm_checkpoint,
)
from timm.utils import ModelEmaV2
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ns_easyrobust.errors import CheckpointError, ModelError, OptionError, OutputError
from ns_easyrobust.models import architectures as models
from ns_easyrobust.models.checkpoint_save import export_checkpoint, save_model
from ns_easyrobust.models.checkpoints import load_model, read_checkpoint
from ns_easyrobust.models.normalization import with_normalization


def test_metadata_that_holds_itself_is_refused(tmp_path):
    loop: dict = {}
    loop["loop"] = loop
    with pytest.raises(OptionError, match="nested 50 deep"):
        save_model(with_normalization(models.build(ARCH), (0.5,) * 3, (0.5,) * 3), tmp_path / "c.pth", extra=loop)


def test_timm_loads_the_other_layout_raw_and_ema(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    path = tmp_path / "c.pth.tar"
    save_model(model, path, ema=ema, layout="timm", **EXTRA)
    for use_ema, expected in ((False, model), (True, ema)):
        vit = timm.create_model(ARCH, num_classes=CLASSES)
        timm.models.load_checkpoint(vit, str(path), use_ema=use_ema)
        assert torch.equal(logits(with_normalization(vit, MEAN, STD)), logits(expected))
        ours = load_model(ARCH, path, ema=use_ema, num_classes=CLASSES)
        assert torch.equal(logits(ours), logits(expected))
        assert ours.normalization_origin == "checkpoint"
    content = torch.load(path)
    assert content["mean"] == pytest.approx(MEAN)
    assert type(content["mean"]) is list
    assert "mean_ema" not in content
    vit = timm.create_model(ARCH, num_classes=CLASSES, checkpoint_path=str(path))
    assert isinstance(vit, nn.Module)


def test_bare_model_saves_in_timms_layout_only(tmp_path):
    vit = make_vit()
    save_model(vit, tmp_path / "c.pth", layout="timm")
    assert same_states(torch.load(tmp_path / "c.pth")["state_dict"], vit.state_dict())
    with pytest.raises(ModelError, match="input normalisation in front"):
        save_model(vit, tmp_path / "d.pth")
    assert not (tmp_path / "d.pth").exists()


def test_saving_copies_no_more_than_the_tensors(tmp_path):
    model = make_model()
    storage = torch.zeros(1_000_000)
    model[1].head.bias.data = storage[:CLASSES]
    save_model(model, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 2_000_000
    assert next(model.parameters()).requires_grad


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"args": {"fn": print}}, r"args\.fn: expected tensors and plain values .* found builtin_function"),
        ({"module": nn.Linear(1, 1)}, "module: .*found Linear"),
        ({"state_dict_ema": {}}, "names beside the weights, found state_dict_ema"),
        ({"mean": [0.5]}, "names beside the weights, found mean"),
    ],
)
def test_extra_that_cannot_be_plain_is_refused(tmp_path, extra, match):
    with pytest.raises(OptionError, match=match):
        save_model(make_model(), tmp_path / "c.pth", **extra)
    with pytest.raises(OptionError, match="layout: expected easyrobust or timm, found 'torch'"):
        save_model(make_model(), tmp_path / "c.pth", layout="torch")
    assert list(tmp_path.iterdir()) == []


# ---- in: strictness ----


# ---- in: normalisation ----


# ---- in: addresses ----


# ---- out ----


def test_easyrobusts_benchmark_loads_what_is_saved_raw_and_ema(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    save_model(model, tmp_path / "c.pth.tar", ema=ema, **EXTRA)
    raw = easyrobust_benchmark_model(tmp_path / "c.pth.tar", use_ema=False)
    averaged = easyrobust_benchmark_model(tmp_path / "c.pth.tar", use_ema=True)
    assert torch.equal(logits(raw), logits(model))
    assert torch.equal(logits(averaged), logits(ema))
    assert not torch.allclose(logits(raw), logits(averaged), atol=1e-3)
    content = torch.load(tmp_path / "c.pth.tar")
    assert list(content["state_dict"])[:2] == ["0.mean", "0.std"]
    assert all(name.startswith(("0.", "1.")) for name in content["state_dict_ema"])
    assert content["args"] == {
        "data_dir": os.path.join("a", "b"),
        "lr": 1e-5,
        "device": "cpu",
        "betas": (0.9, 0.5),
    }
    assert (type(content["epoch"]), type(content["metric"])) == (int, float)
    assert content["optimizer"]["state"][0]["exp_avg"].tolist() == [1, 1]
    checkpoint = read_checkpoint(tmp_path / "c.pth.tar")
    assert checkpoint.arch == ARCH
    assert checkpoint.metadata["epoch"] == 3
    assert torch.equal(logits(load_model(ARCH, checkpoint, ema=True, num_classes=CLASSES)), logits(ema))


def test_wrapped_models_are_saved_unwrapped(tmp_path):
    model = make_model()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = {
            "ddp": nn.parallel.DistributedDataParallel(model),
            "dp": nn.DataParallel(model),
            "compiled": torch.compile(model),
            "both": torch.compile(nn.DataParallel(model)),
            "inside": with_normalization(torch.compile(model[1]), MEAN, STD),
            "ema": ModelEmaV2(model),
            "channels_last": make_model().to(memory_format=torch.channels_last),
        }
        for name, module in wrapped.items():
            save_model(module, tmp_path / name, ema=module)
            content = torch.load(tmp_path / name)
            for entry in ("state_dict", "state_dict_ema"):
                assert same_states(content[entry], model.state_dict()), name
                assert all(value.is_contiguous() for value in content[entry].values())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed\nat")])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "c.pth"
    save_model(make_model(seed=1), path)
    before = path.read_bytes()

    def save_half(content, target):
        target.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OutputError, match="cannot write") as caught:
        save_model(make_model(seed=2), path)
    one_line(caught)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        save_model(make_model(), tmp_path / "none" / "c.pth")


# ---- export ----


def test_round_trip_is_bit_equal(tmp_path):
    model, ema = make_model(seed=1), make_model(seed=2)
    ema[0].mean += 1e-7  # as averaging leaves the buffers
    save_model(model, tmp_path / "a", ema=ema, **EXTRA)
    there = export_checkpoint(tmp_path / "a", tmp_path / "b", "timm")
    export_checkpoint(tmp_path / "b", tmp_path / "c", "easyrobust")
    first, second = torch.load(tmp_path / "a"), torch.load(tmp_path / "c")
    for entry in ("state_dict", "state_dict_ema"):
        assert same_states(first[entry], second[entry])
    assert set(torch.load(tmp_path / "b")["state_dict"]) == set(model[1].state_dict())
    assert {key: second[key] for key in ("arch", "epoch", "metric", "args")} == {
        key: first[key] for key in ("arch", "epoch", "metric", "args")
    }
    assert "optimizer" not in second
    assert there.entries == ("state_dict", "state_dict_ema")
    assert there.normalization_origin == "checkpoint"


def test_export_of_timms_training_checkpoint_mends_easyrobusts_benchmark(tmp_path):
    path, model, ema = timm_checkpoint(tmp_path)
    export_checkpoint(path, tmp_path / "out.pth", "easyrobust")
    assert torch.equal(logits(easyrobust_benchmark_model(tmp_path / "out.pth", False)), logits(model))
    assert torch.equal(logits(easyrobust_benchmark_model(tmp_path / "out.pth", True)), logits(ema))


def test_export_finds_or_asks_for_the_normalisation(tmp_path):
    torch.save(make_vit().state_dict(), tmp_path / "a")
    with pytest.raises(ModelError, match="mean and std, or name the model") as caught:
        export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust")
    one_line(caught)
    done = export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", mean=[0.4], std=[0.2])
    assert (done.mean, done.normalization_origin) == ((0.4,) * 3, "caller")
    done = export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", arch=ARCH)
    assert (done.mean, done.normalization_origin) == ((0.5,) * 3, "timm config")
    assert torch.load(tmp_path / "b")["arch"] == ARCH
    with pytest.raises(CheckpointError, match="does not fit vit_micro_patch4_32"):
        export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", arch="vit_micro_patch4_32")


# ---- export: what no host loads ----

UNLOADABLE = {  # by names that EasyRobust's and timm's strict loaders do not find in their models
    "a count of updates": lambda state: state | {"n_averaged": torch.tensor(3)},
    "names behind a wrapper, some of them": lambda state: (
        {f"module.{n}": v for n, v in state.items()} | {"cls_token": state["cls_token"]}
    ),
    "names behind another model": lambda state: {f"encoder.{n}": v for n, v in state.items()},
    "names behind another model, and others": lambda state: (
        {f"encoder.{n}": v for n, v in state.items()} | {"decoder.weight": torch.ones(1)}
    ),
    "two models": lambda state: state | {f"teacher.{n}": v for n, v in state.items()},
    "names of a sequence": lambda state: {f"1.{n}": v for n, v in state.items()},
    "a second normalisation": lambda state: (
        {"0.mean": torch.tensor(MEAN), "0.std": torch.tensor(STD)}
        | {"1.0.mean": torch.tensor(MEAN), "1.0.std": torch.tensor(STD)}
        | {f"1.1.{n}": v for n, v in state.items()}
    ),
}


@pytest.mark.parametrize("what", UNLOADABLE)
@pytest.mark.parametrize("known", [None, "by the file", "by the caller"])
@pytest.mark.parametrize("entry", ["state_dict", "state_dict_ema"])
def test_export_refuses_what_no_host_loads(tmp_path, what, known, entry):
    good = make_vit().state_dict()
    content = {"state_dict": good, entry: UNLOADABLE[what](good)}
    if known == "by the file":
        content["arch"] = ARCH
    torch.save(content, tmp_path / "a")
    arch = ARCH if known == "by the caller" else None
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust", mean=MEAN, std=STD, arch=arch)
    one_line(caught)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_export_of_an_averaged_model_is_one_that_the_host_loads(tmp_path, place):
    model = make_model()
    averaged = AveragedModel(model) if place == "outside" else nn.Sequential(model[0], AveragedModel(model[1]))
    torch.save(averaged.state_dict(), tmp_path / "a")
    export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust")
    assert torch.equal(logits(easyrobust_benchmark_model(tmp_path / "b", False)), logits(model))


def test_export_compares_with_the_architecture_that_the_file_names(tmp_path, caplog):
    model = make_model()
    save_model(model, tmp_path / "a", arch="vit_micro_patch4_32")
    with pytest.raises(CheckpointError, match="does not fit vit_micro_patch4_32"):
        export_checkpoint(tmp_path / "a", tmp_path / "b", "timm")
    export_checkpoint(tmp_path / "a", tmp_path / "b", "timm", arch=ARCH)
    small = with_normalization(make_vit(embed_dim=32), MEAN, STD)  # the same names
    save_model(small, tmp_path / "small", arch=ARCH)
    with pytest.raises(CheckpointError, match=r"does not fit vit_micro_patch8_32.*of another shape"):
        export_checkpoint(tmp_path / "small", tmp_path / "b", "timm")
    save_model(model, tmp_path / "a", arch="a_model_of_mine")  # which timm does not know: by its names alone
    export_checkpoint(tmp_path / "a", tmp_path / "c", "timm")
    assert same_states(torch.load(tmp_path / "c")["state_dict"], model[1].state_dict())
    assert "could not be compared" in caplog.text
    with pytest.raises(ModelError, match="unknown model"):
        export_checkpoint(tmp_path / "a", tmp_path / "d", "timm", arch="a_model_of_mine")


def test_export_of_weights_for_another_image_size_says_so(tmp_path, caplog):
    model = with_normalization(make_vit(img_size=48), MEAN, STD)
    save_model(model, tmp_path / "a", arch=ARCH)
    export_checkpoint(tmp_path / "a", tmp_path / "b", "easyrobust")
    assert same_states(torch.load(tmp_path / "b")["state_dict"], model.state_dict())
    assert "pos_embed has another shape" in caplog.text


@pytest.mark.parametrize("arch", ["resnet18", "deit_tiny_distilled_patch16_224", "swin_micro_patch2_32"])
def test_export_of_other_models_needs_no_name(tmp_path, arch):
    state = models.build(arch, num_classes=CLASSES).state_dict()
    torch.save(state, tmp_path / "a")
    export_checkpoint(tmp_path / "a", tmp_path / "b", "timm", mean=MEAN, std=STD)
    assert same_states(torch.load(tmp_path / "b")["state_dict"], state)


# ---- equal runs write equal files ----


def test_equal_contents_are_equal_files(tmp_path):
    """Whatever the file's name, and whichever of its strings are one object in memory."""
    for name in ("a.pth.tar", "another name.pth.tar", "c"):
        model, ema = make_model(seed=1), make_model(seed=2)
        save_model(model, tmp_path / name, ema=ema, arch="".join(ARCH), args={"model": "".join(list(ARCH))}, epoch=3)
    first = (tmp_path / "c").read_bytes()
    assert (tmp_path / "a.pth.tar").read_bytes() == (tmp_path / "another name.pth.tar").read_bytes() == first
    content = torch.load(tmp_path / "c")
    copies = [{"".join(list(name)): value.clone() for name, value in content[e].items()} for e in EMA_AND_RAW]
    torch.save(content | dict(zip(EMA_AND_RAW, copies, strict=True)), tmp_path / "d")
    exported = [export_checkpoint(tmp_path / name, tmp_path / f"{name}.out", "easyrobust").path for name in "cd"]
    assert exported[0].read_bytes() == exported[1].read_bytes() == first


EMA_AND_RAW = ("state_dict", "state_dict_ema")
