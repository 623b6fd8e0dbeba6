"""The command behind docs/architectures.md, on small models: what works, what is refused, and what fails."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("architectures")
    kinds = [module.Architecture(name, "small", size=32) for name in ("vit_micro_patch8_32", "swin_micro_patch2_32")]
    monkeypatch.setattr(module, "ARCHITECTURES", kinds)
    return module


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each architecture, without what it is."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[2:] for cells in lines}


def test_its_table_takes_the_place_of_this_timms(script, tmp_path, capsys):
    docs = tmp_path / "page.md"
    docs.write_text(f"before\n{script.MARK}\nold\n{script.MARK}\n<!-- another -->\nafter\n")
    script.main(["--docs", str(docs)])
    text = docs.read_text()
    assert text.startswith(f"before\n{script.MARK}\ntimm {script.timm.__version__}, ")
    assert text.endswith(f"{script.MARK}\n<!-- another -->\nafter\n")
    assert "old" not in text
    found = rows(text)
    vit = ["yes"] * 6 + ["no [1]", "yes", "yes, 128 of 192", "yes"]  # of three blocks, where PatchFool reads the fifth
    swin = ["yes"] * 5 + ["no [2]", "no [2]", "yes", "yes, 0 of 12", "yes"]
    assert found == {"vit_micro_patch8_32": vit, "swin_micro_patch2_32": swin}
    assert re.search(
        r"^1\. .* with a block 4 .*\n2\. SwinTransformer has no blocks whose attention", text, re.MULTILINE
    )
    assert "exact nullspace" in capsys.readouterr().out


def test_what_is_neither_refused_nor_right_is_told(script, monkeypatch, capsys):
    """A check that sees noise without effect, and one that raises what nobody refused."""
    checks = script.CHECKS | {"new head": lambda model, images, labels: {}["a traceback"]}
    monkeypatch.setattr(script, "CHECKS", {name: checks[name] for name in ("hook", "new head")})

    def deaf(*args, **options):
        model = load(*args, **options)
        model[1].forward = lambda images: 0 * model[1].patch_embed(images)[:, 0, :10]
        return model

    load = script.load_model
    monkeypatch.setattr(script, "load_model", deaf)
    with pytest.raises(SystemExit, match="not working: vit_micro_patch8_32"):
        script.main(["--only", "vit_micro_patch8_32"])
    printed = capsys.readouterr().out
    assert "1. fails: AssertionError: noise does not change the logits" in printed
    assert "2. fails: KeyError: 'a traceback'" in printed
    assert rows(printed) == {"vit_micro_patch8_32": ["no [1]", "no [2]"]}


def test_the_page_holds_twelve_of_each_timm_and_none_that_fails():
    text = DOCS.read_text(encoding="utf-8")
    for timm in ("0.5.4", "1.x"):
        mark = f"<!-- what benchmarks/architectures.py has seen under timm {timm} -->"
        _, part, _ = text.split(mark)
        assert f"timm {timm.rstrip('x')}" in part
        assert len(rows(part)) >= 12
        assert "fails" not in part
