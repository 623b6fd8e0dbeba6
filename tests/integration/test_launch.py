"""Scripts of EasyRobust's shape, unmodified, through the real launcher."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from easyrobust.datasets import ImageNetDataset
from helpers.models import small_vit
from helpers.processes import in_a_fork, torchrun
from timm.models import create_model
from timm.utils import ModelEmaV2
from torch import nn
from torch.utils import data, model_zoo
from torchvision import transforms

from ns_easyrobust.cli import main as cli
from ns_easyrobust.integration.compat import repair_script, script_repairs
from ns_easyrobust.integration.launch import load_script
from ns_easyrobust.integration.without_cuda import without_cuda

pytestmark = pytest.mark.host
SCRIPT = Path(__file__).parents[1] / "helpers" / "fake_easyrobust_script.py"


# The shape of EasyRobust's scripts, and nothing in it.
PLAIN = """import argparse, os, sys
parser = argparse.ArgumentParser()
def train_one_epoch(*args): pass
def main():
    parser.parse_args()
"""


@pytest.fixture
def images(digits_dir, tmp_path):
    """Images in a folder of the test's own, for the script writes a list of them there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(digits_dir / "train")
    (tmp_path / "out").mkdir()
    return tmp_path / "data"


def words(images, *more, script=SCRIPT):
    flags = ["--data_dir", images, "--model", "vit_micro_patch8_32", "--output", images.parent / "out"]
    ours = ["--device", "cpu", "--ns-max-steps", "2", "--ns-interval", "3"]
    return [str(word) for word in ["launch", script, *flags, *ours, *more]]


def ran(command, where) -> str:
    """All that the launcher says; it must end well."""
    done = in_a_fork(command, where)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_script_gets_the_companion_loss_and_its_repairs_are_named(images):
    as_torch_distributed_launch_does = "--local-rank=0"
    said = ran(words(images, "--aug", "nullspace", "-j", "0", as_torch_distributed_launch_does), images.parent)
    companions = [float(value) for value in re.findall(r"--aug: step \d: loss [\d.]+, companion ([\d.]+)", said)]
    assert len(companions) == 6
    assert min(companions) > 0.5
    assert said.count("noise 1: ") == said.count("noise 2: ") == 1, "each line once, and a noise for three steps"
    for repair in ("RandomSizedCrop", "-j 0: data loaders"):
        assert said.count(f"repaired: {repair}") == 1 or f"repaired: torchvision has no {repair}" in said
    assert yaml.safe_load((images.parent / "out" / "args.yaml").read_text())["ns_interval"] == 3
    # Without the augmentation it trains otherwise; with a companion, every step is another one.
    shutil.rmtree(images.parent / "out")
    (images.parent / "out").mkdir()
    plain = ran(words(images, "-j", "0"), images.parent)
    assert "companion" not in plain
    weights = [re.findall(r"weights ([\d.]+)", text) for text in (said, plain)]
    assert len(weights[0]) == len(weights[1]) == 6
    assert not set(weights[0]) & set(weights[1])


def test_resume_autocast_and_milestones(images):
    ran(words(images, "-j", "0"), images.parent)
    saved = images.parent / "out" / "checkpoint-0.pth.tar"
    kept = shutil.move(saved, images.parent / "first.pth.tar")
    flags = ["--resume", kept, "--aug", "random", "--amp", "--sched", "multistep", "--epochs", "2", "-j", "1"]
    said = ran(words(images, *flags), images.parent)
    assert "resumed at 1" in said
    assert "output of torch.bfloat16" in said
    assert "epoch 0: lr 0.005" in said
    assert "repaired: --sched multistep" in said


def test_raw_and_averaged_weights_of_dats_form_each_where_they_belong(images):
    """timm's checkpoint of a Sequential(Normalize, vit) with its Namespace inside, as EasyRobust publishes DAT."""
    raw, averaged = small_vit(seed=5), small_vit(seed=6)
    path = images.parent / "dat.pth.tar"
    content = {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict(), "epoch": 299, "version": 2}
    torch.save({**content, "arch": "vit", "args": argparse.Namespace(model="vit"), "metric": 1.0}, path)
    said = ran(
        words(images, "--aug", "nullspace", "-j", "0", "--initial-checkpoint", path, "--model-ema"), images.parent
    )
    (found,) = re.findall(r"start: raw ([\d.]+), average ([\d.]+)", said)
    expected = [sum(float(p.double().square().sum()) for p in model[1].parameters()) for model in (raw, averaged)]
    assert [float(value) for value in found] == pytest.approx([float(value) for value in expected], rel=1e-9)
    assert "repaired: --initial-checkpoint holds a normalisation" in said
    assert "(mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5))" in said
    assert "repaired: --model-ema starts from the checkpoint's moving average" in said


@pytest.mark.stress
def test_two_processes_train_one_model(images):
    done = torchrun(2, images.parent, *words(images, "--aug", "nullspace", "-j", "0"))
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    weights = [re.findall(r"weights ([\d.]+)", line) for line in said.splitlines() if "output of" in line]
    assert len(weights) == 2 * 3
    assert len(set(map(str, weights))) == 3, "both ranks have the same weights after each step"
    assert said.count("noise 1: ") == 1
    assert said.count("ranks wait for rank 0") == 1
    assert (images / "train_with_label.txt").read_text().count("\n") == 1297


def test_downloads_from_a_folder(images, tmp_path):
    url = "http://nowhere.invalid/models/weights.ckpt"
    (tmp_path / "files").mkdir()
    torch.save({"state_dict": small_vit(seed=5)[1].state_dict()}, tmp_path / "files" / "weights.ckpt")
    said = ran(words(images, "-j", "0", "--fetch", url, "--downloads", tmp_path / "files"), images.parent)
    assert f"repaired: weights.ckpt is read from {tmp_path / 'files'} instead of {url}" in said
    done = in_a_fork(words(images, "--fetch", url), tmp_path)
    assert done.returncode == 2
    assert "Put weights.ckpt into a folder and give launch --downloads FOLDER." in done.stderr.splitlines()[-1]


def test_help_is_the_scripts_and_ours(capsys, tmp_path):
    said = ran(["launch", str(SCRIPT), "--device", "cpu", "--help"], tmp_path)
    for flag in ("--aug-repeats", "--aug NAME", "--ns-branch", "--ns-eps"):
        assert flag in said
    with pytest.raises(SystemExit):
        cli.main(["launch", "--help"])
    assert "--downloads DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected an EasyRobust training script, found no file"),
        ("no suffix", "expected an EasyRobust training script, found no Python file"),
        ("import argparse\nparser = argparse.ArgumentParser()\ndef main(): pass\n", "found no train_one_epoch"),
        ("import a_module_that_is_not_there\n", "found no module 'a_module_that_is_not_there'"),
        ("not ( python", "found no Python in it"),
        ("x = 1\0", "found no Python in it"),
        (PLAIN + "parser.add_argument('--aug')", "found its own --aug"),
        (PLAIN + "parser.add_argument('--epoch-steps')", "found its own --epoch-steps"),
        (PLAIN + "parser.add_argument('--noise', dest='ns_eps')", "found its own --noise"),
        (PLAIN + "parser.add_argument('aug', nargs='?')", "found its own aug"),
        (PLAIN + "parser = None", "found no parser"),
        (PLAIN + "main = 3", "found no main"),
        ("compiled", "found no Python file"),
        ("loop", "found no file"),
    ],
)
def test_what_is_no_such_script(tmp_path, capsys, text, message):
    path = tmp_path / {"no suffix": "main", "compiled": "main.pyc"}.get(text, "main.py")
    if text == "loop":
        path.symlink_to(path.name)
    elif text is not None:
        path.write_text(text)
    argv, folders = list(sys.argv), list(sys.path)
    assert cli.main(["launch", str(path), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert "easyrobust_script" not in sys.modules
    assert (sys.argv, sys.path) == (argv, folders)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("raise ValueError('its own')", 1, "ValueError: its own"),
        ("raise BrokenPipeError(32, 'Broken pipe')", 1, "BrokenPipeError"),
        ("raise RecursionError('its own')", 1, "RecursionError: its own"),
        ("sys.exit(7)", 7, ""),
        ("sys.stdout.close()", 0, ""),
        ("raise MemoryError", 2, "ns-easyrobust launch: memory is full"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", 2, "ns-easyrobust launch: memory is full"),
        ("raise RuntimeError('DataLoader worker (pid 5) is killed by signal: Killed. ')", 2, "Lower --workers"),
    ],
)
def test_a_scripts_ending_is_its_own(tmp_path, monkeypatch, capsys, line, code, said):
    """Its traceback begins in the script; what the system does to it is one line."""
    (tmp_path / "main.py").write_text(PLAIN + f"    {line}\n")
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: SIM115
    try:
        found = cli.main(["launch", str(tmp_path / "main.py"), "--device", "cpu"])
    except SystemExit as ended:
        found = ended.code
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert found == code
    assert said in err
    assert "ns_easyrobust/" not in err
    if code == 1:
        first = err[err.index("Traceback") :].splitlines()[1]
        assert "main.py" in first


def test_a_script_with_the_three_lines_is_launched_too(images, tmp_path):
    text = SCRIPT.read_text()
    lines = "from ns_easyrobust import add_nullspace_args, nullspace_augmented\nadd_nullspace_args(parser)\n"
    lines += "train_one_epoch = nullspace_augmented(train_one_epoch)\n"
    where = text.index('if __name__ == "__main__"') if 'if __name__ == "__main__"' in text else len(text)
    own = tmp_path / "own.py"
    own.write_text(text[:where] + lines + text[where:])
    said = ran(words(images, "--aug", "nullspace", "-j", "0", script=own), tmp_path)
    assert said.count("noise 1: ") == 1
    assert len(re.findall(r"--aug: step \d: loss", said)) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data_dir", "nowhere"], "found no such file or directory: nowhere"),
        (["--model", "vit_micro"], "--model: expected a name that timm knows, found vit_micro"),
        (["--resume", "auto"], "found no such file or directory: its log names it above"),
        (["-c", "no.yaml"], "found no such file or directory: no.yaml"),
    ],
)
def test_mistakes_in_a_scripts_flags_end_in_one_line(images, flags, message):
    done = in_a_fork(words(images, "-j", "0", *flags), images.parent)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_labels_beyond_the_classes_are_told(images, tmp_path):
    narrow = tmp_path / "narrow.py"
    narrow.write_text(SCRIPT.read_text().replace('"num_classes": 10', '"num_classes": 5'))
    done = in_a_fork(words(images, "-j", "0", script=narrow), tmp_path)
    assert done.returncode == 2
    assert "--num-classes: expected more classes than the label" in done.stderr.splitlines()[-1]


def test_a_model_without_a_patch_embedding_is_refused(images):
    done = in_a_fork(words(images, "--aug", "nullspace", "-j", "0", "--model", "resnet18"), images.parent)
    assert done.returncode == 2
    assert "ResNet has no patch embedding" in done.stderr.splitlines()[-1]


def test_everything_is_as_it_was_afterwards():
    def swapped():
        cuda = (torch.cuda.synchronize, torch.cuda.amp.autocast, torch.cuda.amp.GradScaler)
        processes = (nn.parallel.DistributedDataParallel.__init__, torch.distributed.init_process_group)
        loading = (data.DataLoader.__init__, model_zoo.load_url, torch.hub.load_state_dict_from_url)
        return (*cuda, *processes, *loading, ImageNetDataset.__init__, hasattr(transforms, "RandomSizedCrop"))

    before = swapped()
    allowed = set(map(str, torch.serialization.get_safe_globals()))
    with without_cuda(), script_repairs():
        assert not any(now is then for now, then in zip(swapped(), before, strict=True))
        assert torch.cuda.synchronize("cuda:0") is None
        with torch.cuda.amp.autocast():
            assert nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
        assert not torch.cuda.amp.GradScaler().is_enabled()
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert nn.Linear(2, 2).cuda().to("cuda:1").weight.device.type == "cpu"
        assert torch.ones(1).to(torch.device("cuda", 0)).cuda().device.type == "cpu"
        assert data.DataLoader([1], persistent_workers=True).persistent_workers is False
    assert swapped() == before
    assert set(map(str, torch.serialization.get_safe_globals())) == allowed
    with pytest.raises(ValueError, match="persistent_workers"):
        data.DataLoader([1], persistent_workers=True)


def test_a_missing_tkinter_is_stood_in_for_while_a_script_runs(monkeypatch):
    for name in ("tkinter", "tkinter.ttk"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with script_repairs():
        assert importlib.import_module("tkinter.ttk").Style is object
        sys.modules["this"] = ModuleType("this")
    assert not {"tkinter", "tkinter.ttk"} & set(sys.modules)
    assert "this" in sys.modules, "what else the script imports stays"


def test_an_average_copies_integer_buffers():
    """Three updates of Swin's position index at decay 0.9999, by timm's own average and by the mended one."""
    script = SimpleNamespace(parser=argparse.ArgumentParser(), create_model=create_model, ModelEmaV2=ModelEmaV2)
    model = create_model("swin_micro_patch2_32", num_classes=10)
    plain = ModelEmaV2(model, decay=0.9999)
    repair_script(script)
    mended = script.ModelEmaV2(model, decay=0.9999)
    for _ in range(3):
        plain.update(model)
        mended.update(model)
    wanted = {name: value for name, value in model.named_buffers() if name.endswith("position_index")}
    for average, right in ((plain, False), (mended, True)):
        found = dict(average.module.named_buffers())
        assert all(torch.equal(found[name], value) for name, value in wanted.items()) == right


def test_loading_does_not_run_the_script():
    with script_repairs():
        module = load_script(SCRIPT)
    assert callable(module.main)
    sys.modules.pop("easyrobust_script")


def test_a_recipe_by_its_name_reaches_the_script(tmp_path, capfd):
    script = tmp_path / "plain.py"
    script.write_text(PLAIN.replace("parser.parse_args()", "print(*sys.argv[1:], sep='|')"))
    assert cli.main(["launch", str(script), "--device", "cpu", "-c", "dat_with_ns", "--model", "paper_weak"]) == 0
    flag, recipe, *rest = capfd.readouterr().out.strip().split("|")
    assert (flag, rest) == ("-c", ["--model", "paper_weak"])
    assert yaml.safe_load(Path(recipe).read_text())["ns_branch"] == "first"
