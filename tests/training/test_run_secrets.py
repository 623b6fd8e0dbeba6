"""What the address of a checkpoint hides stands in none of a run's files."""

import argparse
from types import SimpleNamespace
from typing import Any

from helpers.models import small_vit

from ns_easyrobust.training.run import Position, Run, identity


def test_weights_and_states_hold_no_secrets(tmp_path):
    address = "https://me:open-sesame@example.org/vit.pth"
    args = argparse.Namespace(initial_checkpoint=address, model="vit_micro_patch8_32", batch_size=2)
    data: Any = SimpleNamespace(digest="d")
    assert identity(args, data)["args"]["initial_checkpoint"] == "https://***@example.org/vit.pth"
    model = small_vit()
    model.arch = args.model  # as load_model sets it
    run: Any = SimpleNamespace(args=args, model=model, ema=None, folder=tmp_path, at=Position())
    Run._save_weights(run, "last.pth.tar")
    content = (tmp_path / "last.pth.tar").read_bytes()
    assert b"vit.pth" in content
    assert b"open-sesame" not in content
