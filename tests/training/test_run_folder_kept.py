"""Weights that are kept every N updates: which, of what, and after a run that was cut off."""

from __future__ import annotations

import hashlib

import pytest
import torch
from helpers.models import small_vit

import ns_easyrobust.training.trainer as module
from ns_easyrobust.models.checkpoint_save import save_model
from ns_easyrobust.training import kept_checkpoints
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.training.trainer import train


@pytest.fixture
def run(digits_dir, tmp_path):
    """Trains six updates in epochs of three, the weights of every second one kept; returns the folder."""
    save_model(small_vit(), tmp_path / "start.pth.tar")

    def carry_out(name, *more):
        words = ["--data-dir", str(digits_dir), "--initial-checkpoint", str(tmp_path / "start.pth.tar"), "-j", "0"]
        words += ["--model", "vit_micro_patch8_32", "-b", "4", "--max-steps", "6", "--epoch-steps", "3", "--lr", "1e-2"]
        words += ["--val-interval", "9", "--select", "last", "--model-ema", "--model-ema-decay", "0.5", *more]
        return train(parse_args([*words, "--output", str(tmp_path), "--experiment", name, "--device", "cpu"]))

    return carry_out


def digests(folder):
    return {step: hashlib.sha256(path.read_bytes()).hexdigest() for step, path in kept_checkpoints(folder).items()}


def test_every_second_update_is_kept_whatever_cut_the_run_off(run, monkeypatch):
    whole = run("whole", "--keep-interval", "2")
    kept = kept_checkpoints(whole)
    assert list(kept) == [2, 4, 6]
    assert len(set(digests(whole).values())) == 3
    content = torch.load(kept[4], weights_only=True)
    assert content["step"] == 4
    assert "optimizer" not in content
    newest, last = (torch.load(path, weights_only=True) for path in (kept[6], whole / "last.pth.tar"))
    for entry in ("state_dict", "state_dict_ema"):
        assert newest[entry].keys() == last[entry].keys()
        assert all(torch.equal(newest[entry][name], last[entry][name]) for name in last[entry])
    raw, ema = content["state_dict"], content["state_dict_ema"]
    assert any(not torch.equal(raw[name], ema[name]) for name in raw)

    step, steps = module._train_step, iter(range(100))

    def failing(*args):
        if next(steps) == 4:  # after checkpoint 4; the newest state is that of step 3, the end of an epoch
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(module, "_train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        run("cut", "--keep-interval", "2", "--resume", "auto")
    cut = run("cut", "--keep-interval", "2", "--resume", "auto")
    assert digests(cut) == digests(whole)


def test_other_names_are_not_taken_for_it(tmp_path):
    folder = tmp_path
    for name in ("checkpoint-.pth.tar", "checkpoint-2.pth.tar.tmp", "checkpoint-1e3.pth.tar"):
        (tmp_path / name).touch()
    assert kept_checkpoints(folder) == {}
    for step in (100, 20):
        (folder / f"checkpoint-{step}.pth.tar").touch()
    assert list(kept_checkpoints(folder)) == [20, 100]
