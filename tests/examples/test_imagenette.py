"""``examples/imagenette.ipynb``: executed as a whole, small, and its cells run on a few digits and a small model."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from ns_easyrobust.cli import main as cli
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.models.checkpoint_save import save_model

PATH = Path(__file__).parents[2] / "examples" / "imagenette.ipynb"
CELLS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TINY = """
PICTURES, WEIGHTS = Path({pictures!r}), {weights!r}
MODEL, KWARGS, SIZE = "vit_micro_patch8_32", {{}}, 32
TRAIN, VAL = 2, 2
BATCH, STEPS, INTERVAL = 8, 2, 2
NOISE = NoiseConfig(max_steps=5, pool=2)
CORRUPTIONS, SEVERITY = ["gaussian_noise"], 3
"""


def test_it_was_executed_in_order_without_an_error_and_is_small():
    assert PATH.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    texts = "".join(line for output in outputs for line in output.get("text", []))
    assert not [place for place in ("/home/", "/root/", "/tmp/") if place in texts]
    assert "Error" not in texts


def test_its_cells_run_on_a_few_digits(trained, digits_dir, tmp_path, monkeypatch, capsys):
    def in_this_process(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            return subprocess.CompletedProcess(words, cli.main(words[1:]), said.getvalue())

    shown: list[int] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    matplotlib.use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)) or plt.close("all"))
    save_model(trained, tmp_path / "weights.pth.tar")
    mine = [tmp_path / name for name in ("results.jsonl", "runs/none/last.pth.tar")]  # as docs/your-data.md calls them
    mine[1].parent.mkdir(parents=True)
    for path in mine:
        path.write_text("mine")
    tiny = TINY.format(pictures=str(digits_dir), weights="weights.pth.tar")
    scope: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE):
        source = tiny if "parameters" in cell["metadata"].get("tags", []) else "".join(cell["source"])
        exec(compile(source, f"cell {number}", "exec"), scope)
    assert [cell for cell in CODE if "parameters" in cell["metadata"].get("tags", [])]
    assert shown == [10, 5, 1]
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "imagenette-small",
        "weights.pth.tar",
        "results.jsonl",
        "runs",
    }
    records = read_records("imagenette-small/results.jsonl")
    assert {record.label for record in records} == {"as it was", "none", "nullspace"}
    assert {record.suite for record in records} >= {"imagenet-val", "fgsm", "imagenet-c"}
    assert {record.n for record in records} == {20}
    text = capsys.readouterr().out
    assert "20 photographs for training, 20 for validation" in text
    assert "McNemar p = " in text
