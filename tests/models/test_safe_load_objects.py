"""Files with objects beside the weights, as other people's trainers leave them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ns_easyrobust.errors import CheckpointError
from ns_easyrobust.models.safe_load import read_without_objects


class Callback:
    """As Lightning's, beside the weights."""

    def __init__(self):
        self.best = 1.0


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("it_ran",))


def test_objects_beside_the_weights_are_left_out_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"w": torch.arange(3.0)}, "callbacks": {Callback: Callback(), "x": [Callback()]}}
    torch.save(content, "lightning.ckpt")
    assert torch.equal(read_without_objects(Path("lightning.ckpt"), "it")["state_dict"]["w"], torch.arange(3.0))
    torch.save({**content, "hostile": Payload()}, "hostile.ckpt")
    with pytest.raises(CheckpointError, match=r"found the Python object \w+\.mkdir, which was not loaded"):
        read_without_objects(Path("hostile.ckpt"), "it")
    assert not Path("it_ran").exists()
