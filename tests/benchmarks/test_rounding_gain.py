"""The table of what each stiffness gains."""

from __future__ import annotations

import re

from helpers.processes import load_script

from ns_easyrobust.models.checkpoint_save import save_model


def test_all_stiffnesses_gain_most(trained, digits_dir, tmp_path, capsys):
    save_model(trained, tmp_path / "m.pth.tar", arch="vit_micro_patch8_32")
    words = ["--ckpt-path", str(tmp_path / "m.pth.tar"), "--data-dir", str(digits_dir), "--images", "4"]
    load_script("rounding_gain").main([*words, "-j", "0", "--device", "cpu"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "vit_micro_patch8_32, seed 42, 4 images, 64 patches"
    gains = {name: float(gain) for name, gain in (row.split() for row in rows)}
    assert len(gains) == 6
    assert 1 < max(gain for name, gain in gains.items() if name != "all") <= gains["all"]
    assert all(re.fullmatch(r" +\S+  \d\.\d\d", row) for row in rows)
