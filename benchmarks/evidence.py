"""All studies of docs/evidence.md on Imagenette, for a machine with a GPU; the one on CIFAR-10 is a study by itself.

python benchmarks/evidence.py IMAGENETTE_FOLDER START.safetensors [--output FOLDER] [--processes 8] [--dry-run]
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from steps import carry_out, link_to_benchmarks

STUDIES = "benchmarks/studies/evidence"
MODEL = f"{STUDIES}/vit_small_patch14_112.py:vit_small_patch14_112"
BARE = """\
python -c "from safetensors.torch import load_file, save_file; s = load_file('start.safetensors'); \
save_file({k[2:]: v for k, v in s.items() if k.startswith('1.')}, 'start_bare.safetensors')"\
  # makes start_bare.safetensors
"""


def commands(source: Path, start: Path, processes: int) -> str:
    """What is run, with ``processes`` trainings or evaluations at a time on each GPU."""

    def study(name: str) -> str:
        return f"ns-easyrobust experiment study -c {STUDIES}/{name}.yaml -o evidence/{name} --processes {processes}"

    return f"""
ln -s {shlex.quote(str(start.resolve()))} start.safetensors  # makes start.safetensors
python benchmarks/imagenette_tree.py {shlex.quote(str(source.resolve()))} data  # makes data
ns-easyrobust corrupt data/select/imagenet-val data/select/imagenet-c --severity 3 --size 112
ns-easyrobust corrupt data/confirm/imagenet-val data/confirm/imagenet-c --severity 3 --size 112
{BARE.strip()}
{study("help")}
{study("variants")}
python benchmarks/confirm_study.py {STUDIES}/variants.yaml evidence/variants confirm.yaml  # makes confirm.yaml
ns-easyrobust experiment study -c confirm.yaml -o evidence/confirm --processes {processes}
{study("normalisation")}
{study("noises")}
ns-easyrobust experiment feasible-norm --study evidence/help --model {MODEL} --data-dir data \
    -o evidence/help/feasible_norm
"""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="IMAGENETTE_FOLDER", help="with train/ and val/")
    parser.add_argument("start", type=Path, metavar="START", help="safetensors file of the ViT-S/14")
    parser.add_argument("--output", type=Path, default=Path("output/imagenette"), metavar="FOLDER")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="on each GPU (default: 8)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and do nothing")
    args = parser.parse_args(words)
    for path, there in (
        (args.source / "train", Path.is_dir),
        (args.source / "val", Path.is_dir),
        (args.start, Path.is_file),
    ):
        if not (args.dry_run or there(path)):
            parser.error(f"expected {path}, found nothing there")
    text = link_to_benchmarks(args.output) + commands(args.source, args.start, args.processes)
    carry_out(text, args.output, args.dry_run)


if __name__ == "__main__":
    main()
