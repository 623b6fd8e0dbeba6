"""The path of docs/evidence.md in minutes, on scikit-learn's digits, from nothing to reports (`make study-small`).

python benchmarks/study_small.py [--output FOLDER] [--dry-run]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from steps import carry_out, link_to_benchmarks

STUDIES = "benchmarks/studies/evidence"
CORRUPTIONS = """--corruption gaussian_noise defocus_blur contrast pixelate jpeg_compression \\
    --severity 3 --size 32 --crop-pct 1"""
COMMANDS = f"""
python -c "from ns_easyrobust.data import write_digits; write_digits('digits')"  # makes data
python benchmarks/imagenette_tree.py digits data --side 32 --per-class 20  # makes data
ns-easyrobust corrupt data/select/imagenet-val data/select/imagenet-c {CORRUPTIONS}
ns-easyrobust corrupt data/confirm/imagenet-val data/confirm/imagenet-c {CORRUPTIONS}
ns-easyrobust train --model vit_micro_patch8_32 --num-classes 10 --data-dir data -j 0 --seed 0 \
    --scale 0.7 1 --hflip 0 --color-jitter 0 --epochs 20 -b 64 --lr 1e-3 --min-lr 1e-5 --val-interval 10 \
    --select last --output . --experiment pretrained --resume auto
ns-easyrobust experiment study -c {STUDIES}/small.yaml -o small --processes 2
python benchmarks/confirm_study.py {STUDIES}/small.yaml small confirm.yaml --seeds 2  # makes confirm.yaml
ns-easyrobust experiment study -c confirm.yaml -o confirm --processes 2
ns-easyrobust experiment feasible-norm --study small --methods none random nullspace --data-dir data \
    --crop-pct 1 --images 200 --synthesis-images 512 --directions 2 --max-steps 20 -j 0 -o feasible_norm
"""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/study-small"), metavar="FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and do nothing")
    args = parser.parse_args(words)
    carry_out(link_to_benchmarks(args.output) + COMMANDS, args.output, args.dry_run)
    if not args.dry_run:
        reports = ("small/report.md", "confirm/report.md", "feasible_norm/feasible_norm.md")
        print("all is done:", ", ".join(str(args.output / report) for report in reports))


if __name__ == "__main__":
    main()
