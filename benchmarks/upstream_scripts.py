"""EasyRobust's fifteen ImageNet scripts, unmodified, a few steps each under ``ns-easyrobust launch --aug nullspace``.

    git clone https://github.com/alibaba/easyrobust
    python benchmarks/upstream_scripts.py easyrobust [--only dat hat] [--docs docs/launch.md]

It runs on the CPU in some minutes, on scikit-learn's digits, with small models of random weights,
and files of random weights where a script downloads some: what is shown is that and how a script
runs, not how well it trains. With ``--docs`` the table in that file is replaced by what was seen.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ns_easyrobust.data import write_digits
from ns_easyrobust.utils import write_text

IMAGES = 3  # of each class, in train/ and in val/
MARK = "<!-- what benchmarks/upstream_scripts.py has seen -->"
SMALL, WIDE = "vit_micro_patch8_32", "vit_micro_patch32_224"


@dataclass(frozen=True)
class Script:
    """One script of the repository.

    Attributes:
        name: of its folder; "" for the base script.
        gets: which of its losses has the companion.
        model: that it is run with here.
        flags: beside those that all get.
        downloads: function of this file that writes what it would download.
    """

    name: str
    gets: str
    model: str = WIDE
    flags: Sequence[str] = ()
    downloads: str = ""

    @property
    def path(self) -> str:
        return f"{self.name}/main.py" if self.name else "base_training_script.py"


_MIXED = ("--mixup", "0.8", "--mean", "0", "0", "0", "--std", "1", "1", "1")
SCRIPTS = (
    Script("", "its one loss", SMALL),
    Script("adversarial_training", "the loss on the images attacked by PGD, the only one"),
    Script("advprop", "the one loss on clean and attacked images together, so both get it"),
    Script("apr", "the one loss on images and their mixed spectra together, so both get it"),
    Script("augmix", "the cross-entropy of the clean third of the joint forward; not the consistency term"),
    Script(
        "dat",
        "the clean loss, the first of two; the discrete-adversarial one has none unless --ns-branch all",
        SMALL,
        _MIXED,
        "vqgan",
    ),
    Script("deepaugment", "its one loss"),
    Script(
        "drvit",
        "its one loss; noise on the continuous tokens, before the discrete ones join",
        "drvit_small_patch16",
        (),
        "drvit_vqgan",
    ),
    Script(
        "fan", "its one loss; the patch embedding gives (tokens, grid), noise goes on the tokens", "fan_tiny_12_p16_224"
    ),
    Script("hat", "the cross-entropy of the first of the three attack steps, which has weight 1"),
    Script("prime", "the one loss on augmented images"),
    Script("rvt", "its one loss; the patch embedding gives a map (C, H, W), and so does the noise", "rvt_tiny"),
    Script(
        "shape_texture_debiased_training",
        "the first of its two losses of both forwards, image by image; small images at the model's size",
        WIDE,
        (),
        "adain",
    ),
    Script("SIN", "its one loss"),
    Script(
        "wiseft",
        "none: refused. Its CLIP models have no patch_embed, and their weights cannot be fetched here",
        "clip_vit_base_patch16_224",
    ),
)


class ScriptRun(NamedTuple):
    """What a run has said."""

    steps: int
    loss: float | None
    companion: float | None
    repairs: list[str]
    ended: str  # "" for well

    def cells(self) -> list[str]:
        numbers = "" if self.companion is None else f"{self.steps}: {self.loss:.2f}, {self.companion:.2f}"
        return [numbers or self.ended, "; ".join(self.repairs) or "nothing"]


def vqgan(folder: Path) -> None:
    from easyrobust.third_party.vqgan import VQModel

    config = {"double_z": False, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
              "ch_mult": [1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [32], "dropout": 0.0}  # fmt: skip
    weights = VQModel(config, n_embed=16384, embed_dim=4).state_dict()
    torch.save({"state_dict": weights}, folder / "vqgan_openimages_f8_16384.ckpt")


def drvit_vqgan(folder: Path) -> None:
    from easyrobust.third_party.vqgan import Encoder, VectorQuantizer

    parts = {
        "encoder": Encoder(
            ch=128,
            out_ch=3,
            ch_mult=(1, 1, 2, 2, 4),
            num_res_blocks=2,
            attn_resolutions=(16,),
            dropout=0.0,
            in_channels=3,
            resolution=256,
            z_channels=256,
            double_z=False,
        ),
        "quant_conv": torch.nn.Conv2d(256, 256, 1),
        "quantize": VectorQuantizer(1024, 256, beta=0.25),
    }
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save({"state_dict": weights}, folder / "vqgan_imagenet_f16_1024.ckpt")


def adain(folder: Path) -> None:
    from easyrobust.third_party import adain as nets

    torch.save(nets.decoder.state_dict(), folder / "decoder.pth")
    torch.save(nets.vgg.state_dict(), folder / "vgg_normalised.pth")


def write_data(root: Path) -> Path:
    """A few digits in EasyRobust's layout, and the augmented copies that deepaugment and SIN ask for."""
    everything = write_digits(root / "digits")
    for split in ("train", "val"):
        for folder in sorted((everything / split).iterdir()):
            target = root / "data" / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:IMAGES]:
                shutil.copy(image, target)
    for copy in ("CAE", "EDSR", "Stylized"):
        shutil.copytree(root / "data" / "train", root / "data" / copy)
    shutil.rmtree(everything)
    return root / "data"


def run(script: Script, scripts: Path, work: Path, limit: float) -> ScriptRun:
    """Launch it in a process of its own."""
    downloads = work / "downloads"
    downloads.mkdir(exist_ok=True)
    if script.downloads:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            globals()[script.downloads](downloads)
    command = [sys.executable, "-m", "ns_easyrobust", "launch", str(scripts / script.path), "--device", "cpu",
               "--downloads", str(downloads), "--aug", "nullspace", "--ns-max-steps", "5", "--ns-interval", "2",
               "--data_dir", str(work / "data"), "--model", script.model, "--num-classes", "10", "-b", "6", "-j", "1",
               "--epochs", "1", "--opt", "adamw", "--lr", "1e-4", "--log-interval", "1",
               "--output", str(work / "output"), *script.flags]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit, env=environment, cwd=work
        )
    except subprocess.TimeoutExpired:
        return ScriptRun(0, None, None, [], f"not through after {limit:.0f} s")
    finally:
        shutil.rmtree(downloads)
    said = done.stdout + done.stderr
    found = re.findall(r"--aug: step (\d+): loss ([\d.]+), companion ([\d.]+)", said)
    repairs = [re.sub(r" is read from .*", " from `--downloads`", line) for line in re.findall(r"repaired: (.*)", said)]
    ended = "" if done.returncode == 0 else _without_folders(said.strip().splitlines()[-1])
    if done.returncode == 0 and not found:
        ended = "ended without a companion loss"
    last = found[-1] if found else (0, "nan", "nan")
    numbers = (float(last[1]), float(last[2])) if found else (None, None)
    return ScriptRun(int(last[0]) + 1 if found else 0, *numbers, repairs, ended)


def _without_folders(line: str) -> str:
    return re.sub(r"(?<![:\w/])/\S*/", "", line).removeprefix("ns-easyrobust launch: ").replace("|", "\\|")


def table(rows: Sequence[tuple[Script, ScriptRun]]) -> str:
    """What was seen, as Markdown."""
    lines = ["| script | the companion is of | model here | steps: last loss, companion | repaired |",
             "|:--|:--|:--|:--|:--|"]  # fmt: skip
    for script, seen in rows:
        name = script.name or "base_training_script"
        lines.append(" | ".join([f"| `{name}`", script.gets, f"`{script.model}`", *seen.cells()]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="EasyRobust's repository")
    parser.add_argument("--only", nargs="+", choices=[script.name or "base" for script in SCRIPTS], metavar="NAME")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one script (default: 300)")
    parser.add_argument("--docs", type=Path, help="file whose table is replaced")
    args = parser.parse_args()
    if args.only and args.docs:
        parser.error("--docs: expected a table of all scripts, found --only. Give one of both.")
    scripts = args.repository.resolve() / "examples" / "imageclassification" / "imagenet"
    if not (scripts / "base_training_script.py").is_file():
        raise SystemExit(f"{args.repository}: expected EasyRobust's repository, found no {scripts}. Clone it.")
    chosen = [script for script in SCRIPTS if args.only is None or (script.name or "base") in args.only]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        for script in chosen:
            seen = run(script, scripts, Path(folder), args.limit)
            rows.append((script, seen))
            print(f"{script.name or 'base'}: {', '.join(seen.cells())}", flush=True)
    if args.docs is not None:
        before, _, after = args.docs.read_text(encoding="utf-8").partition(MARK)
        rest = after.partition(MARK)[2]
        write_text(args.docs, f"{before}{MARK}\n{table(rows)}{MARK}{rest}")
    print(f"\n{table(rows)}")
    if any(seen.companion is None for script, seen in rows if not script.gets.startswith("none")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
