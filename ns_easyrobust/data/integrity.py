"""Checks of a data folder before an evaluation: what is wrong, and how each flaw would affect the results."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import DataError
from . import imagenet
from .benchmarks import ALEXNET_ERROR, SEVERITIES, Benchmark, known_benchmarks
from .completeness import short_folders
from .image_list import ImageList, Subset
from .image_reading import decode_image
from .known_labels import OtherClasses
from .layout import benchmark_folder, holds_benchmarks
from .listing import IMAGE_ENDINGS, first_few, images_below, is_hidden, is_image, list_folder, walk

OBJECTNET_IMAGES = 50273  # in all 313 folders
DAMAGENET_2019 = 96020  # images of the first edition, since withdrawn
_RESIZED = "where the protocol takes this set as it is, these are resized to the model's input"
LEVELS = ("ok", "absent", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One result of the checks.

    Attributes:
        suite: key of :func:`~ns_easyrobust.data.benchmarks.known_benchmarks`.
        level: one of :data:`LEVELS`; a problem prevents a result, a warning changes what it means.
        text: what was found.
        effect: how it affects the result, or would in EasyRobust; "" for not at all.
    """

    suite: str
    level: str
    text: str
    effect: str = ""


def easyrobust_difference(images: ImageList) -> str:
    """What EasyRobust's ImageFolder, which labels folders by their sorted order, does differently; "" if nothing."""
    folders, _ = list_folder(images.root, hidden=True)
    filled = {path.split("/")[0] for path in images.paths}
    for name in (name for name in folders if name not in filled):
        files = chain.from_iterable(files for _, _, files in walk(images.root / name, everything=True))
        if not any(file.lower().endswith(IMAGE_ENDINGS) for file in files):
            return f"EasyRobust's ImageFolder would stop: no images in {name}"
    folder_position = {name: position for position, name in enumerate(folders)}
    class_position = {label: position for position, label in enumerate(images.classes or range(images.outputs))}
    pairs = zip(images.paths, images.labels, strict=True)
    wrong = sum(folder_position[path.split("/")[0]] != class_position[label] for path, label in pairs) / len(images)
    return f"EasyRobust's ImageFolder would label {100 * wrong:.1f}% of the images wrong" if wrong else ""


def _class_findings(suite: str, images: ImageList) -> Iterator[Finding]:
    """Classes without images, and folders that EasyRobust would label differently."""
    names, _ = list_folder(images.root)
    difference = easyrobust_difference(images)
    expected = images.classes or range(images.outputs)
    missing = sorted(set(expected) - set(images.labels)) if images.answers is None else []
    if missing:
        ids = [imagenet.wnids()[c] if images.outputs == imagenet.CLASSES else str(c) for c in missing]
        text = f"{len(expected) - len(missing)} of {len(expected)} classes have images; none for {first_few(ids, 3)}"
        effect = "the number is over the classes present"
        yield Finding(
            suite, "warning", text, f"{effect}; {difference}; here names give the labels" if difference else effect
        )
    elif difference:
        if names[0].isdigit() and names != sorted(names, key=int):
            text = f"class folders are numbered without leading zeros ({first_few(names, 3)})"
        else:
            text = "there are hidden folders, or folders without images, among the class folders"
        yield Finding(suite, "warning", text, f"{difference}; here names give the labels")


def _stray_findings(suite: str, root: Path, flat: bool) -> Iterator[Finding]:
    """Files that are not images, images next to the class folders, and hidden files and folders."""
    strays: list[str] = []
    hidden: list[str] = []
    for folder, folders, files in walk(root, everything=True):
        prefix = f"{folder}/" if folder else ""
        hidden += [prefix + name for name in (*folders, *files) if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        if not flat:
            visible = (name for name in files if not is_hidden(name))
            strays += [prefix + name for name in visible if not (prefix and is_image(name))]
    if strays:
        yield Finding(
            suite, "warning", f"{len(strays)} stray files: {first_few(sorted(strays), 3)}", "none: they are ignored"
        )
    if hidden:
        text = f"{len(hidden)} hidden files or folders: {first_few(sorted(hidden), 3)}"
        difference = "EasyRobust's ImageFolder takes hidden folders for classes and reads hidden image files"
        yield Finding(suite, "warning", text, f"ignored here; {difference}")


def _count_findings(suite: str, benchmark: Benchmark, images: ImageList) -> Iterator[Finding]:
    if images.outputs != imagenet.CLASSES:
        return
    count, expected = len(images), benchmark.images
    if suite == "damagenet" and count == DAMAGENET_2019:
        text = f"{count} images: the withdrawn edition of 2019; the released one has {expected}"
        yield Finding(suite, "warning", text, "no number to set beside published ones")
    elif count != expected:
        text = f"{count} images, expected {expected}"
        yield Finding(suite, "warning", text, f"the number is of a subset, not {benchmark.title}'s")
    if suite == "val":
        try:
            Subset("robustbench").of(images)
        except DataError as error:
            effect = "PatchFool and AutoAttack, which take them by default, take a random subset instead"
            yield Finding(suite, "warning", error.line.removeprefix(f"{images.root}: "), effect)
    if suite == "objectnet":
        names, _ = list_folder(images.root)
        total = sum(1 for name in names for _ in images_below(images.root, name))
        if total != OBJECTNET_IMAGES:
            text = f"{total} images in all folders, expected {OBJECTNET_IMAGES}"
            yield Finding(suite, "warning", text, "none, if only classes that ImageNet lacks are short of images")


def examine_folder(
    suite: str, benchmark: Benchmark, root: Path, outputs: int
) -> tuple[list[Finding], ImageList | None]:
    """The findings on one folder, and its images as the loader lists them; None where the loader refuses it."""
    try:
        images = benchmark.load(root, outputs, None)
    except DataError as error:
        if isinstance(error, OtherClasses) and suite != "val" and outputs != imagenet.CLASSES:
            return [Finding(suite, "warning", error.line, "skipped for a model of these classes")], None
        folders, _ = list_folder(root) if os.path.isdir(root) else ([], [])
        easyrobust_action = "label by the sorted folders, right or wrong" if folders else "stop"
        other_classes = 0 < len(folders) != outputs == imagenet.CLASSES and suite == "val"
        hint = f"for a model of {len(folders)} classes give --num-classes {len(folders)}; " if other_classes else ""
        return [Finding(suite, "problem", error.line, f"{hint}refused; EasyRobust would {easyrobust_action}")], None
    flat = "/" not in images.paths[0]
    class_count = "" if flat else f"{len(set(images.labels))} classes, "
    findings = [Finding(suite, "ok", f"{class_count}{len(images)} images, labelled {images.labelled}")]
    if flat and suite != "damagenet":
        findings[0] = Finding(suite, "ok", findings[0].text, "EasyRobust's ImageFolder would stop: no class folders")
    if not flat:
        findings += _class_findings(suite, images)
    findings += _count_findings(suite, benchmark, images)
    findings += _stray_findings(suite, images.root, flat)
    return findings, images


def examine_c(
    suite: str, benchmark: Benchmark, root: Path, outputs: int, sample: int | None
) -> tuple[list[Finding], list[ImageList]]:
    """The findings on ImageNet-C's 75 folders, identical ones merged, and from each folder its share of ``sample``."""
    names = [f"{corruption}/{severity}" for corruption in ALEXNET_ERROR for severity in SEVERITIES]
    missing = [name for name in names if not os.path.isdir(root / name)]
    lists: list[ImageList] = []
    counts: dict[str, int] = {}
    folders_by_finding: dict[Finding, list[str]] = {}
    for name in tqdm([n for n in names if n not in missing], f"listing {benchmark.folder}", disable=None, leave=False):
        folder_findings, images = examine_folder(suite, benchmark, root / name, outputs)
        # Cut each list at once: all of them together would hold 3.75 million paths.
        images_per_folder = None if sample is None else -(-sample // len(names))
        if images is not None:
            counts[name] = len(images)
            lists.append(images.take(evenly_spaced(len(images), images_per_folder)))
        for finding in folder_findings:
            without_root = finding.text.replace(f"{root / name}: ", "")
            folders_by_finding.setdefault(Finding(suite, finding.level, without_root, finding.effect), []).append(name)
    findings = []
    for finding, affected in folders_by_finding.items():
        which = "all 75 folders" if affected == names else f"{len(affected)} of 75 folders ({first_few(affected, 3)})"
        findings.append(Finding(suite, finding.level, f"{which}: {finding.text}", finding.effect))
    if short := short_folders(root, counts):
        findings.append(Finding(suite, "warning", short, "the mean is over unequal or fewer images"))
    if missing:
        absent_corruptions = [c for c in ALEXNET_ERROR if all(f"{c}/{s}" in missing for s in SEVERITIES)]
        other_missing = [name for name in missing if name.split("/")[0] not in absent_corruptions]
        parents = sorted({path.parent.name for name in absent_corruptions for path in root.glob(f"*/{name}")})
        hint = f"; move up what lies in {', '.join(parents)}" if parents else ""
        text = f"{len(missing)} of {len(names)} folders missing: {', '.join(absent_corruptions + other_missing)}{hint}"
        own_classes = outputs != imagenet.CLASSES and len(missing) < len(names)
        effect = "the mean is over the others" if own_classes else "no mCE"
        level = "warning" if own_classes else "problem"
        findings.append(Finding(suite, level, text, f"{effect}; EasyRobust would stop at the first of them"))
    return findings, lists


def evenly_spaced(n: int, k: int | None) -> list[int]:
    """``k`` evenly spaced integers from 0 to ``n`` - 1; all of them if ``k`` is None."""
    return list(range(n)) if k is None or k >= n else [i * n // k for i in range(k)]


def _decoded(path: str) -> tuple[tuple[int, int], int] | DataError:
    """Size of an image and bits of its greys; or why it cannot be read."""
    try:
        image = decode_image(path)
    except DataError as error:
        return error
    return image.rgb.size, image.bits


def decode_findings(suite: str, benchmark: Benchmark, lists: Sequence[ImageList], workers: int) -> Iterator[Finding]:
    """Decode every image of ``lists``; report what cannot be read, has other than 8 bits, or not the released size."""
    total = sum(map(len, lists))
    paths = (str(images.root / path) for images in lists for path in images.paths)
    broken: list[str] = []
    scaled: list[str] = []
    odd: list[str] = []
    reason = ""  # of the first that is broken
    # decode_image changes warning filters, which threads share: restore them once all threads have ended.
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        warnings.simplefilter("ignore")
        bar = tqdm(total=total, desc=f"decoding {benchmark.folder}", disable=None, leave=False)
        while batch := list(islice(paths, 1024)):  # queueing millions of paths at once would not fit in memory
            for path, decoded in zip(batch, pool.map(_decoded, batch), strict=True):
                bar.update()
                if isinstance(decoded, DataError):
                    broken.append(path)
                    reason = reason or decoded.line.removeprefix(f"{path}: ")
                    continue
                size, bits = decoded
                scaled += [path] if bits != 8 else []
                if benchmark.side is not None and size != (benchmark.side, benchmark.side):
                    odd.append(f"{path} ({size[0]}x{size[1]})")
        bar.close()
    if broken:
        text = f"{len(broken)} of {total} images decoded are unreadable: {first_few(broken, 3)} ({reason})"
        yield Finding(suite, "problem", text, "the evaluation would stop at the first of them")
    if scaled:
        text = f"{len(scaled)} of {total} images decoded are greys of more than 8 bits: {first_few(scaled, 3)}"
        yield Finding(suite, "warning", text, "here they are scaled to 8 bits; in EasyRobust they would be white")
    if odd:
        text = f"{len(odd)} of {total} images decoded are not {benchmark.side}x{benchmark.side}: {first_few(odd, 1)}"
        yield Finding(suite, "warning", text, _RESIZED)


def examine(
    data_dir: str | Path,
    outputs: int = imagenet.CLASSES,
    *,
    suites: Iterable[str] | None = None,
    folders: Mapping[str, Path] | None = None,
    sample: int | None = 200,
    workers: int = 4,
) -> list[Finding]:
    """Check ``suites`` in ``data_dir`` before a model with ``outputs`` outputs is evaluated on them.

    Args:
        suites: keys of :func:`~ns_easyrobust.data.benchmarks.known_benchmarks`; None: all.
        folders: of suites that lie elsewhere than in ``data_dir``, by suite.
        sample: images to decode from each suite, evenly spaced; None: all.
        workers: number of decoding threads.

    Raises:
        DataError: ``data_dir`` is missing or contains no known suite.
    """
    data_dir, folders = Path(data_dir), folders or {}
    present, _ = list_folder(data_dir)
    if not folders and not holds_benchmarks(data_dir):
        expected = ", ".join(benchmark.folder for benchmark in known_benchmarks().values())
        raise DataError(f"{data_dir}: expected some of {expected}, found none of them. Check the folder's name.")
    findings = []
    for suite in known_benchmarks() if suites is None else suites:
        benchmark = known_benchmarks()[suite]
        if outputs != imagenet.CLASSES:
            benchmark = replace(benchmark, side=None)  # only the released images have a known size
        root = folders.get(suite) or benchmark_folder(data_dir, benchmark)
        if not os.path.isdir(root):
            findings.append(
                Finding(suite, "absent", f"no folder {benchmark.folder}{_similar(benchmark, present)}", "skipped")
            )
            continue
        if suite == "c":
            suite_findings, lists = examine_c(suite, benchmark, root, outputs, sample)
        else:
            suite_findings, images = examine_folder(suite, benchmark, root, outputs)
            lists = [images.take(evenly_spaced(len(images), sample))] if images is not None else []
        findings += suite_findings
        if lists:
            findings += decode_findings(suite, benchmark, lists, workers)
    return findings


def _similar(benchmark: Benchmark, present: Sequence[str]) -> str:
    """A hint at folders whose names begin the same way, such as ``imagenetv2-matched-frequency-format-val``."""
    start = _alphanumeric(benchmark.folder.split("/")[0])
    taken = {other.folder for other in known_benchmarks().values()}
    alike = [name for name in present if _alphanumeric(name).startswith(start) and name not in taken]
    return f"; is it {first_few(alike, 3)}?" if alike else ""


def _alphanumeric(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
