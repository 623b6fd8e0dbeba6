"""What an evaluation will find in a data folder, and what each flaw would have done to its number."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from ..errors import DataError
from . import imagenet
from .benchmarks import ALEXNET_ERROR, FOLDERS, SEVERITIES, Folder
from .image_folder import images_below, is_image, list_folder
from .image_list import ImageList, Subset
from .transforms import read_image

OBJECTNET_IMAGES = 50273  # in all folders
DAMAGENET_2019 = 96020  # the first edition, since withdrawn
_RESIZED = "where the protocol takes this set as it is, these are resized to the model's input"
LEVELS = ("ok", "absent", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One thing seen.

    Attributes:
        suite: key of :data:`~ns_easyrobust.data.benchmarks.FOLDERS`.
        level: of :data:`LEVELS`; a problem keeps a number from being computed, a warning changes what it means.
        text: what was found.
        effect: what it does, or would have done, to the number; "" for nothing.
    """

    suite: str
    level: str
    text: str
    effect: str = ""


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of ``names``."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def easyrobust_reads(images: ImageList) -> str:
    """What EasyRobust's ImageFolder, which labels by the order of the folders found, would do; "" if the same."""
    folders = sorted(entry.name for entry in os.scandir(images.root) if entry.is_dir())  # with hidden ones
    filled = {path.split("/")[0] for path in images.paths}
    for name in (name for name in folders if name not in filled):
        files = chain.from_iterable(files for _, _, files in os.walk(images.root / name, followlinks=True))
        if not any(file.lower().endswith(IMG_EXTENSIONS) for file in files):
            return f"EasyRobust's ImageFolder would stop: no images in {name}"
    order = {name: place for place, name in enumerate(folders)}
    among = {c: place for place, c in enumerate(images.classes or range(images.outputs))}
    pairs = zip(images.paths, images.labels, strict=True)
    wrong = sum(order[path.split("/")[0]] != among[label] for path, label in pairs) / len(images)
    return f"EasyRobust's ImageFolder would label {100 * wrong:.1f}% of the images wrong" if wrong else ""


def _class_findings(suite: str, images: ImageList) -> Iterator[Finding]:
    """Classes without images, and folders that EasyRobust would read otherwise."""
    names, _ = list_folder(images.root)
    theirs = easyrobust_reads(images)
    expected = images.classes or range(images.outputs)
    missing = sorted(set(expected) - set(images.labels)) if images.answers is None else []
    if missing:
        called = [imagenet.wnids()[c] if images.outputs == imagenet.CLASSES else str(c) for c in missing]
        text = f"{len(expected) - len(missing)} of {len(expected)} classes have images; none for {some(called)}"
        over = "the number is over the classes present"
        yield Finding(suite, "warning", text, f"{over}; {theirs}; here names give the labels" if theirs else over)
    elif theirs:
        if names[0].isdigit() and names != sorted(names, key=int):
            text = f"class folders are numbered without leading zeros ({some(names)})"
        else:
            text = "there are hidden folders, or folders without images, among the class folders"
        yield Finding(suite, "warning", text, f"{theirs}; here names give the labels")


def _stray_findings(suite: str, root: Path, flat: bool) -> Iterator[Finding]:
    """Files that are no images, images beside the class folders, and hidden entries."""
    other: list[str] = []
    hidden: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        inside = "" if folder == str(root) else f"{Path(folder).relative_to(root).as_posix()}/"
        hidden += [inside + name for name in (*folders, *files) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not flat:
            visible = (name for name in files if not name.startswith("."))
            other += [inside + name for name in visible if not (inside and is_image(name))]
    if other:
        yield Finding(suite, "warning", f"{len(other)} stray files: {some(sorted(other))}", "none: they are ignored")
    if hidden:
        text = f"{len(hidden)} hidden files or folders: {some(sorted(hidden))}"
        theirs = "EasyRobust's ImageFolder takes hidden folders for classes and reads hidden image files"
        yield Finding(suite, "warning", text, f"ignored here; {theirs}")


def _count_findings(suite: str, folder: Folder, images: ImageList) -> Iterator[Finding]:
    if images.outputs != imagenet.CLASSES:
        return
    found, expected = len(images), folder.images
    if suite == "damagenet" and found == DAMAGENET_2019:
        text = f"{found} images: the withdrawn edition of 2019; the released one has {expected}"
        yield Finding(suite, "warning", text, "no number to set beside published ones")
    elif found != expected:
        text = f"{found} images, expected {expected}"
        yield Finding(suite, "warning", text, f"the number is of a subset, not {folder.title}'s")
    if suite == "val":
        try:
            Subset("robustbench").of(images)
        except DataError as error:
            theirs = "PatchFool and AutoAttack, which take them, would be refused; give --subset patchfool=random:1000"
            yield Finding(suite, "warning", error.line.removeprefix(f"{images.root}: "), theirs)
    if suite == "objectnet":
        names, _ = list_folder(images.root)
        total = sum(1 for name in names for _ in images_below(images.root, name))
        if total != OBJECTNET_IMAGES:
            text = f"{total} images in all folders, expected {OBJECTNET_IMAGES}"
            yield Finding(suite, "warning", text, "none, if only classes that ImageNet lacks are short of images")


def examine_folder(suite: str, folder: Folder, root: Path, outputs: int) -> tuple[list[Finding], ImageList | None]:
    """One folder of images, as its loader takes it; None where it refuses."""
    try:
        images = folder.load(root, outputs, None)
    except DataError as error:
        folders, _ = list_folder(root) if root.is_dir() else ([], [])
        theirs = "label by the sorted folders, right or wrong" if folders else "stop"
        few = 0 < len(folders) != outputs == imagenet.CLASSES and suite == "val"
        hint = f"for a model of {len(folders)} classes give --num-classes {len(folders)}; " if few else ""
        return [Finding(suite, "problem", error.line, f"{hint}refused; EasyRobust would {theirs}")], None
    flat = "/" not in images.paths[0]
    kinds = "" if flat else f"{len(set(images.labels))} classes, "
    findings = [Finding(suite, "ok", f"{kinds}{len(images)} images, labelled {images.labelled}")]
    if flat and suite != "damagenet":
        findings[0] = Finding(suite, "ok", findings[0].text, "EasyRobust's ImageFolder would stop: no class folders")
    if not flat:
        findings += _class_findings(suite, images)
    findings += _count_findings(suite, folder, images)
    findings += _stray_findings(suite, images.root, flat)
    return findings, images


def examine_c(
    suite: str, folder: Folder, root: Path, outputs: int, sample: int | None
) -> tuple[list[Finding], list[ImageList]]:
    """ImageNet-C's 75 folders, of each a part of the ``sample``; what several of them share is said once."""
    names = [f"{corruption}/{severity}" for corruption in ALEXNET_ERROR for severity in SEVERITIES]
    missing = [name for name in names if not (root / name).is_dir()]
    lists: list[ImageList] = []
    where: dict[Finding, list[str]] = {}
    for name in tqdm([n for n in names if n not in missing], f"listing {folder.name}", disable=None, leave=False):
        found, images = examine_folder(suite, folder, root / name, outputs)
        # Whole lists would be 3.75 million paths.
        each = None if sample is None else -(-sample // len(names))
        lists += [images.take(spread(len(images), each))] if images is not None else []
        for finding in found:
            without_root = finding.text.replace(f"{root / name}: ", "")
            where.setdefault(Finding(suite, finding.level, without_root, finding.effect), []).append(name)
    findings = []
    for finding, at in where.items():
        which = "all 75 folders" if at == names else f"{len(at)} of 75 folders ({some(at)})"
        findings.append(Finding(suite, finding.level, f"{which}: {finding.text}", finding.effect))
    if missing:
        whole = [c for c in ALEXNET_ERROR if all(f"{c}/{s}" in missing for s in SEVERITIES)]
        parts = [name for name in missing if name.split("/")[0] not in whole]
        deeper = sorted({path.parent.name for name in whole for path in root.glob(f"*/{name}")})
        hint = f"; move up what lies in {', '.join(deeper)}" if deeper else ""
        text = f"{len(missing)} of {len(names)} folders missing: {', '.join(whole + parts)}{hint}"
        findings.append(Finding(suite, "problem", text, "no mCE; EasyRobust would stop at the first of them"))
    return findings, lists


def spread(n: int, k: int | None) -> list[int]:
    """``k`` of 0 to ``n`` - 1, evenly; all of them for None."""
    return list(range(n)) if k is None or k >= n else [i * n // k for i in range(k)]


def _size(path: str) -> tuple[int, int] | DataError:
    try:
        return read_image(path).size
    except DataError as error:
        return error


def decode_findings(suite: str, folder: Folder, lists: Sequence[ImageList], workers: int) -> Iterator[Finding]:
    """Decode every image of ``lists``: which cannot be, and which have another size than the released ones."""
    total = sum(map(len, lists))
    paths = (str(images.root / path) for images in lists for path in images.paths)
    broken: list[str] = []
    odd: list[str] = []
    # read_image sets warning filters, which threads share: put them back when all have ended.
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        bar = tqdm(total=total, desc=f"decoding {folder.name}", disable=None, leave=False)
        while batch := list(islice(paths, 1024)):  # a queue of millions would not fit
            for path, size in zip(batch, pool.map(_size, batch), strict=True):
                bar.update()
                if isinstance(size, DataError):
                    broken.append(path)
                elif folder.side is not None and size != (folder.side, folder.side):
                    odd.append(f"{path} ({size[0]}x{size[1]})")
        bar.close()
    if broken:
        text = f"{len(broken)} of {total} images decoded are unreadable: {some(broken)}"
        yield Finding(suite, "problem", text, "the evaluation would stop at the first of them")
    if odd:
        text = f"{len(odd)} of {total} images decoded are not {folder.side}x{folder.side}: {some(odd, 1)}"
        yield Finding(suite, "warning", text, _RESIZED)


def examine(
    data_dir: str | Path,
    outputs: int = imagenet.CLASSES,
    *,
    suites: Iterable[str] = FOLDERS,
    sample: int | None = 200,
    workers: int = 4,
) -> list[Finding]:
    """Everything worth knowing of ``suites`` in ``data_dir`` before a model with ``outputs`` is evaluated.

    Args:
        sample: images decoded of each suite, evenly spread; None: all.
        workers: threads that decode.

    Raises:
        DataError: the data folder is missing or holds none of all suites.
    """
    data_dir = Path(data_dir)
    there, _ = list_folder(data_dir)
    if not any((data_dir / folder.name).is_dir() for folder in FOLDERS.values()):
        expected = ", ".join(folder.name for folder in FOLDERS.values())
        raise DataError(f"{data_dir}: expected some of {expected}, found none of them. Check the folder's name.")
    findings = []
    for suite in suites:
        folder = FOLDERS[suite]
        root = data_dir / folder.name
        if not root.is_dir():
            findings.append(Finding(suite, "absent", f"no folder {folder.name}{_similar(folder, there)}", "skipped"))
            continue
        if suite == "c":
            found, lists = examine_c(suite, folder, root, outputs, sample)
        else:
            found, images = examine_folder(suite, folder, root, outputs)
            lists = [images.take(spread(len(images), sample))] if images is not None else []
        findings += found
        if lists:
            findings += decode_findings(suite, folder, lists, workers)
    return findings


def _similar(folder: Folder, there: Sequence[str]) -> str:
    """A hint at folders whose names begin alike, as ``imagenetv2-matched-frequency-format-val``."""
    bare = _letters(folder.name.split("/")[0])
    taken = {other.name for other in FOLDERS.values()}
    alike = [name for name in there if _letters(name).startswith(bare) and name not in taken]
    return f"; is it {some(alike)}?" if alike else ""


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
