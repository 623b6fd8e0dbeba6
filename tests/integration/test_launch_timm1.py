"""EasyRobust's scripts under timm 1.x: refused before they run, in whichever of the two environments this is."""

from __future__ import annotations

import re

import pytest
import timm

from ns_easyrobust.cli import main as cli


@pytest.mark.parametrize("installed", ["1.0.31", "1.1.0.dev0", "2.0"])
def test_a_script_is_refused_in_one_line_before_it_runs(tmp_path, monkeypatch, capsys, installed):
    if timm.__version__.startswith("0."):
        monkeypatch.setattr(timm, "__version__", installed)
    (tmp_path / "main.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w')\n")
    assert cli.main(["launch", str(tmp_path / "main.py"), "--device", "cpu", "--aug", "nullspace"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"main\.py: expected timm 0\.5\.4, .* found timm [12]\..*pip install timm==0\.5\.4", line)
    assert not (tmp_path / "it_ran").exists()
