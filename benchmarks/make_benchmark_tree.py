"""Write every evaluation folder of EasyRobust's layout, small, with a known number of errors planted in each.

An image is one colour, which spells a class and a flag; :class:`ReadsPixels` reads both. Where
the flag says so it answers wrongly, so a run over the tree has one right count for each folder,
known from the plan alone:

    python benchmarks/make_benchmark_tree.py TREE [--size 32] [--per-class 1] [--classes 20]

The 75,000 files of ImageNet-C are hard links to one file for each colour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import nn

from ns_easyrobust.data import ALEXNET_ERROR, SEVERITIES, imagenet

# What the reader answers for an image of class c:
RIGHT = 0  # c
NEXT = 1  # c + 1
OUTSIDE = 2  # a class of neither ImageNet-A nor -R, with c second: right once logits are taken from the 200
WITHIN = 3  # another class of both ImageNet-A and -R, with c second: wrong either way
FLAGS = 4
_MADE_UP = 60000  # ImageNet has 50,000 validation images, whose names would say another class


class Picture(NamedTuple):
    """One image of the plan: its path in the tree, the class and flag it shows, its label in its suite."""

    path: str
    shows: int
    flag: int
    label: int


class Planted(NamedTuple):
    """What an evaluation of one folder has to count.

    ``right`` follows the suite's protocol (masked for ImageNet-A and -R, mapped for ObjectNet);
    ``unmasked`` is the count when a prediction is the first of all 1000 logits.
    """

    n: int
    right: int
    unmasked: int


def colour(shows: int, flag: int) -> tuple[int, int, int]:
    """RGB of a class (0 to 1023) and a flag: three digits of base 16, each in the middle of its 16 levels."""
    code = FLAGS * shows + flag
    red, green, blue = (16 * (code // 16**power % 16) + 8 for power in (2, 1, 0))
    return red, green, blue


def answer(shows: int, flag: int, outputs: int = 1000) -> int:
    """The class that :class:`ReadsPixels` puts first."""
    in_a, in_r = set(imagenet.imagenet_a_classes()), set(imagenet.imagenet_r_classes())
    after = ((shows + step) % outputs for step in range(1, outputs))
    if flag == RIGHT:
        return shows
    if flag == NEXT:
        return next(after)
    if flag == OUTSIDE:
        return next(c for c in after if c not in in_a | in_r)
    return next(c for c in after if c in in_a & in_r)


class ReadsPixels(nn.Module):
    """Pixels in [0, 1] (B, 3, H, W) to logits (B, outputs), by the mean colour.

    A logit falls with the squared distance, in digits, to the nearest colour that answers so;
    neighbouring colours are 1 apart. So there is a gradient for attacks, and a step of 1/255
    changes no answer.
    """

    def __init__(self, outputs: int = 1000) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = nn.Parameter(torch.ones(()))
        codes = [(shows, flag) for shows in range(outputs) for flag in range(FLAGS)]
        self.register_buffer("colours", torch.tensor([colour(*code) for code in codes], dtype=torch.float32))
        first = [answer(*code, outputs=outputs) for code in codes]
        self.register_buffer("answers", torch.tensor(first + [shows for shows, _ in codes]))
        # The class shown comes second, unless it is first or (NEXT) far behind.
        behind = torch.tensor([0.0 if flag == RIGHT else 0.25 if flag != NEXT else 100.0 for _, flag in codes])
        self.register_buffer("penalty", torch.cat([torch.zeros(len(codes)), behind]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = 255 * pixels.mean((2, 3))  # (B, 3)
        distance = ((seen[:, None] - self.colours) / 16).square().sum(-1)  # (B, codes)
        scores = -torch.cat([distance, distance], 1) - self.penalty
        index = self.answers.expand_as(scores)
        empty = scores.new_full((len(pixels), self.outputs), -1e4)
        return self.scale * empty.scatter_reduce(1, index, scores, "amax")


def _plan_folder(names: Sequence[str], classes: Sequence[int], number: int, folders: int, flags: Sequence[int]):
    """Pictures ``names`` that show ``classes``; a number of them, another for each folder, with one of ``flags``."""
    n = len(names)
    errors = min(n, 1 + number * max(1, (n - 2) // folders) % max(1, n - 1))
    wrong = set(random.Random(number).sample(range(n), errors))
    planted = iter(range(n))
    return [
        Picture(name, shows, flags[next(planted) % len(flags)] if i in wrong else RIGHT, shows)
        for i, (name, shows) in enumerate(zip(names, classes, strict=True))
    ]


def _val_names(per_class: int, robustbench: bool) -> Iterator[tuple[str, int]]:
    listed: dict[str, list[str]] = {}
    for name in imagenet.robustbench_ids() if robustbench else ():
        listed.setdefault(name.split("/")[0], []).append(name)
    for index, wnid in enumerate(imagenet.wnids()):
        made_up = [f"{wnid}/ILSVRC2012_val_{_MADE_UP + index * per_class + j:08d}.JPEG" for j in range(per_class)]
        for name in listed.get(wnid) or made_up:
            yield name, index


def _objectnet(number: int, folders: int, per_class: int) -> list[Picture]:
    """All 313 folders; those of ImageNet's classes show one of the outputs that mean them."""
    outputs: dict[int, list[int]] = {}
    for output, folder in imagenet.objectnet_classes().items():
        outputs.setdefault(folder, []).append(output)
    pictures = []
    for folder in range(imagenet.OBJECTNET_FOLDERS):
        mine = outputs.get(folder, [0])
        names = [f"object_{folder:03d}/{j:04d}.png" for j in range(max(per_class, len(mine)))]
        pictures += [(name, mine[j % len(mine)], folder) for j, name in enumerate(names)]
    names, shows, labels = zip(*pictures, strict=True)
    planted = _plan_folder(names, shows, number, folders, (NEXT, OUTSIDE))
    return [p._replace(label=label) for p, label in zip(planted, labels, strict=True)]


def plan(per_class: int = 1, classes: int = 1000, robustbench: bool = False) -> dict[str, list[Picture]]:
    """Folder -> its pictures. Folders are EasyRobust's; ImageNet-C's are 'imagenet-c/<corruption>/<severity>'.

    Args:
        per_class: images a class; ObjectNet has one for each output that means its folder.
        classes: class folders in each folder of ImageNet-C, to write fewer files.
        robustbench: let imagenet-val hold RobustBench's 5000 files.
    """
    wnids = imagenet.wnids()
    c_folders = [f"imagenet-c/{name}/{severity}" for name in ALEXNET_ERROR for severity in SEVERITIES]
    everywhere = range(1000)
    some = sorted({index * 1000 // classes for index in range(classes)})
    kinds: dict[str, tuple[Sequence[int], str, Sequence[int]]] = {
        "imagenet-sketch": (everywhere, "{wnid}/sketch_{j}.JPEG", (NEXT,)),
        "imagenet-style": (everywhere, "{wnid}/ILSVRC2012_val_{i:08d}.JPEG", (NEXT,)),
        "imagenetv2": (everywhere, "{c}/{j:08x}.jpeg", (NEXT,)),
        "imagenet-a": (imagenet.imagenet_a_classes(), "{wnid}/0.{j:06d}_{wnid}.jpg", (OUTSIDE, WITHIN, OUTSIDE)),
        "imagenet-r": (imagenet.imagenet_r_classes(), "{wnid}/art_{j}.jpg", (OUTSIDE, OUTSIDE, WITHIN)),
        "damagenet-folders": (everywhere, "{wnid}/ILSVRC2012_val_{i:08d}.png", (NEXT,)),
        **dict.fromkeys(c_folders, (some, "{wnid}/ILSVRC2012_val_{i:08d}.JPEG", (NEXT,))),
    }
    total = len(kinds) + 3
    plans = {}
    for number, (folder, (members, pattern, flags)) in enumerate(kinds.items()):
        pairs = [(c, j) for c in members for j in range(per_class)]
        names = [pattern.format(wnid=wnids[c], c=c, j=j, i=_MADE_UP + c * per_class + j + 1) for c, j in pairs]
        plans[folder] = _plan_folder(names, [c for c, _ in pairs], number, total, flags)
    names, shown = zip(*_val_names(per_class, robustbench), strict=True)
    plans["imagenet-val"] = _plan_folder(names, shown, total - 3, total, (NEXT,))
    plans["ObjectNet/images"] = _objectnet(total - 2, total, per_class)
    shuffled = random.Random(0).sample([c for c in everywhere for _ in range(per_class)], 1000 * per_class)
    flat = [f"ILSVRC2012_val_{_MADE_UP + i:08d}.png" for i in range(1, len(shuffled) + 1)]
    plans["damagenet"] = _plan_folder(flat, shuffled, total - 1, total, (NEXT,))
    return plans


def planted(folder: str, pictures: Sequence[Picture]) -> Planted:
    """The counts that follow from the plan of one folder."""
    if folder.startswith("ObjectNet"):
        answers = imagenet.objectnet_classes()
        pictures = [p for p in pictures if p.label in set(answers.values())]
        right = sum(answers.get(answer(p.shows, p.flag), -1) == p.label for p in pictures)
        return Planted(len(pictures), right, right)
    unmasked = sum(p.flag == RIGHT for p in pictures)
    return Planted(len(pictures), sum(p.flag in (RIGHT, OUTSIDE) for p in pictures), unmasked)


def write_tree(
    root: str | Path,
    size: int = 32,
    per_class: int = 1,
    classes: int = 1000,
    robustbench: bool = False,
    folders: Sequence[str] | None = None,
) -> dict[str, Planted]:
    """Write the tree; what each folder has to count.

    Args:
        root: a folder, made if absent; folders of the plan must not be in it.
        size: side of the images of ImageNet-C, Stylized-ImageNet and DamageNet; photographs are larger.
        per_class, classes, robustbench: see :func:`plan`.
        folders: only these of the plan ('imagenet-c' for its 75).
    """
    root = Path(root)
    plans = plan(per_class, classes, robustbench)
    if folders is not None:
        plans = {f: p for f, p in plans.items() if f in folders or f.split("/")[0] in folders}
    base = root / ".base"
    base.mkdir(parents=True)
    for folder, pictures in plans.items():
        square = folder.split("/")[0] in ("imagenet-c", "imagenet-style", "damagenet", "damagenet-folders")
        shape = (size, size) if square else (size * 4 // 3, size * 8 // 7)
        made: set[str] = set()
        for picture in pictures:
            target = f"{root}/{folder}/{picture.path}"
            parent = target.rpartition("/")[0]
            if parent not in made:
                os.makedirs(parent)
                made.add(parent)
            source = _base_file(base, picture, shape, border=folder.startswith("ObjectNet"))
            try:
                os.link(source, target)
            except OSError:  # no hard links there, or too many to one file
                shutil.copy(source, target)
    shutil.rmtree(base)
    if "damagenet" in plans:
        lines = (f"{Path(p.path).stem}.JPEG {p.label}\n" for p in plans["damagenet"])
        (root / "damagenet" / "val.txt").write_text("".join(lines))
    counts = {folder: planted(folder, pictures) for folder, pictures in plans.items()}
    (root / "planted.json").write_text(json.dumps({folder: count._asdict() for folder, count in counts.items()}))
    return counts


def _base_file(base: Path, picture: Picture, shape: tuple[int, int], border: bool) -> str:
    """The one file of this colour, shape and format, written when first asked for."""
    form = "PNG" if picture.path.endswith(".png") else "JPEG"
    path = f"{base}/{picture.shows}-{picture.flag}-{shape[0]}-{border}.{form}"
    if not os.path.exists(path):
        image = Image.new("RGB", shape, colour(picture.shows, picture.flag))
        image = ImageOps.expand(image, 2, (255, 0, 0)) if border else image  # ObjectNet's red frame
        image.save(path, form, **({"quality": 95} if form == "JPEG" else {"compress_level": 1}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--size", type=int, default=32, help="side of the square images (default: 32)")
    parser.add_argument("--per-class", type=int, default=1, help="images a class (default: 1)")
    parser.add_argument("--classes", type=int, default=1000, help="class folders of ImageNet-C (default: 1000)")
    parser.add_argument("--robustbench", action="store_true", help="let imagenet-val hold RobustBench's 5000 files")
    args = parser.parse_args()
    counts = write_tree(args.root, args.size, args.per_class, args.classes, args.robustbench)
    for folder, count in counts.items():
        print(f"{folder:32} {count.right:5} of {count.n:5} right, unmasked {count.unmasked}")


if __name__ == "__main__":
    main()
