"""A run that is hard to resume, and few images to evaluate on."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.folders import few_digits
from helpers.models import small_vit

from ns_easyrobust.models.checkpoint_save import save_model


@pytest.fixture(scope="session")
def digits_dir(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 100 of the images to evaluate on."""
    return few_digits(digits_dir, tmp_path_factory.mktemp("few") / "digits", 100)


@pytest.fixture
def words(digits_dir, tmp_path, monkeypatch):
    """A run with all that makes an exact resume hard, as words of the command line."""
    monkeypatch.chdir(tmp_path)
    save_model(small_vit(), tmp_path / "start.pth.tar")
    return [
        *("train", "--model", "vit_micro_patch8_32", "--num-classes", "10", "--data-dir", str(digits_dir)),
        *("--initial-checkpoint", "start.pth.tar", "--device", "cpu", "-b", "16"),
        *("--epochs", "3", "--epoch-steps", "6", "--drop", "0.1"),
        *("--aug", "nullspace", "--ns-interval", "4", "--ns-max-steps", "6", "--ns-eps", "1e-9"),
        *("--mixup", "0.8", "--cutmix", "1.0", "--smoothing", "0.1", "--mixup-off-epoch", "2", "--drop-path", "0.2"),
        *("--aa", "rand-m9-mstd0.5-inc1", "--reprob", "0.25", "--model-ema", "--model-ema-decay", "0.9"),
        *("--lr", "1e-3", "--warmup-epochs", "1", "--output", ".", "--recovery-interval", "2", "--resume", "auto"),
    ]  # fmt: skip
