"""The long fuzz of ``make stress``: whatever a file holds, it is read, or refused in one line, soon and in 2 GB."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.hostile_checkpoints import hostile_files, saved
from helpers.hostile_checkpoints import mutated as mutated_checkpoint
from helpers.hostile_images import encoded, hostile_images, small
from helpers.hostile_images import mutated as mutated_image
from helpers.hostile_records import hostile_lines, odd_records
from helpers.hostile_records import mutated as mutated_results
from helpers.models import small_vit
from safetensors.torch import save as safetensors

from ns_easyrobust.data import read_image
from ns_easyrobust.errors import UserError
from ns_easyrobust.evaluation import read_records
from ns_easyrobust.models import read_checkpoint
from ns_easyrobust.nullspace import Noise, NoiseConfig
from ns_easyrobust.report import ResultsTable
from ns_easyrobust.training.options import parse_args

pytestmark = pytest.mark.stress
SECONDS, MEMORY = 10, 2 << 30  # for one file
PER_PROCESS = 250


def read_picture(path: Path) -> None:
    read_image(str(path))


def read_results(path: Path) -> None:
    records = read_records(path)
    if records:
        table = ResultsTable(records)
        table.to_text()
        table.to_markdown()
        table.to_csv()


def read_weights(path: Path) -> None:
    if path.suffix == ".pt":
        Noise.load(path)
    else:
        read_checkpoint(path).weights()


def read_recipe(path: Path) -> None:
    parse_args(["-c", str(path), "--model", "vit_micro_patch8_32", "--data-dir", "."])


RECIPE = yaml.safe_dump({"epochs": 3, "lr": 1e-4, "opt_betas": [0.9, 0.99], "amp": True, "aug": "nullspace"}).encode()
PIECES = [
    b"[",
    b"{",
    b"- ",
    b": ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!",
    b"\n",
    b"\t",
    b"'",
    b'"',
    b"|",
    b"\xff",
    b"\0",
    b"9" * 99,
]


def mutated_recipe(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut out, or put in; or another digit somewhere."""
    if rng.random() < 0.2:
        at = rng.choice([place for place, byte in enumerate(content) if chr(byte).isdigit()])
        return content[:at] + b"%d" % rng.randrange(10) + content[at + 1 :]
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content) + 1)
        content = content[:at] + rng.choice(PIECES) * rng.choice((1, 1, 1, 3000)) + content[at + rng.randrange(4) :]
    return content


def images() -> list[bytes]:
    """Hostile files, and good ones of every format and mode, each twice."""
    forms = [("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]
    forms += [("JPEG", mode) for mode in ("RGB", "L", "CMYK")] + [("TIFF", mode) for mode in ("RGB", "CMYK", "I;16")]
    forms += [(form, "RGB") for form in ("BMP", "PPM", "GIF", "WEBP", "JPEG2000")]
    return [*hostile_images().values(), *(encoded(small(mode), form) for form, mode in forms * 2)]


def checkpoints() -> list[bytes]:
    """Hostile files, and as many good ones: torch's in both of its forms, and safetensors."""
    state = {"state_dict": small_vit()[1].state_dict(), "arch": "vit_micro_patch8_32", "epoch": 3}
    return with_good(saved(state), saved(state, _use_new_zipfile_serialization=False), safetensors(state["state_dict"]))


def noises() -> list[bytes]:
    """Hostile files, and as many good noises."""
    noise = Noise(torch.rand(1, 16, 64), 0.1, 2, True, held_out=None, trace=(), config=NoiseConfig())
    return with_good(saved(noise.state_dict()), saved(noise.state_dict(), _use_new_zipfile_serialization=False))


def with_good(*good: bytes) -> list[bytes]:
    hostile = list(hostile_files().values())
    return [*hostile, *itertools.islice(itertools.cycle(good), len(hostile))]


def results() -> list[bytes]:
    """Files of one hostile line, and one of many good lines that is mutated as often."""
    good = "\n".join(record.to_json() for record in odd_records()).encode("utf-8", "surrogatepass")
    return [line for one in hostile_lines() for line in (one, good)]


KINDS: dict[str, tuple[Callable[[], list[bytes]], Callable[[random.Random, bytes], bytes]]] = {
    "images": (images, mutated_image),
    "results": (results, mutated_results),
    "checkpoints": (checkpoints, mutated_checkpoint),
    "noises": (noises, mutated_checkpoint),
    "recipes": (lambda: [RECIPE], mutated_recipe),
}


def inputs(kind: str) -> Iterator[bytes]:
    """Hostile files first, then their mutations, each by a seed of its own."""
    make, mutated = KINDS[kind]
    files = make()
    yield from files
    for number in itertools.count():
        rng = random.Random(f"{kind} {number}")
        yield mutated(rng, rng.choice(files))


def read_one(read: Callable[[Path], None], path: Path) -> str:
    """How reading ended: "read", "refused", or what went wrong."""
    before = time.monotonic()
    signal.alarm(SECONDS)
    try:
        read(path)
        ended = "read"
    except UserError as error:
        ended = "refused" if error.line and "\n" not in error.line else f"no line: {error.line!r}"
    except BaseException:
        return traceback.format_exc()[-3000:]
    finally:
        signal.alarm(0)
    return ended if time.monotonic() - before < SECONDS else "slow"


def work(read: Callable[[Path], None], contents: list[bytes], path: Path, results: Any) -> None:
    """Read each of ``contents`` in turn from ``path``, in a process of its own."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"not read within {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    for content in contents:
        path.write_bytes(content)
        results.put(read_one(read, path))
    os._exit(0)


@pytest.mark.parametrize(
    ("kind", "count", "name", "read"),
    [
        ("images", 10_000, "image.png", read_picture),
        ("results", 2_000, "results.jsonl", read_results),
        ("checkpoints", 500, "weights.pth", read_weights),
        ("noises", 500, "noise.pt", read_weights),
        ("recipes", 500, "recipe.yaml", read_recipe),
    ],
    ids=["images", "results", "checkpoints", "noises", "recipes"],
)
def test_files_that_are_not_what_they_should_be(kind, count, name, read, tmp_path, capsys):
    stream, ended = inputs(kind), Counter()
    for start in range(0, count, PER_PROCESS):
        contents = [next(stream) for _ in range(min(PER_PROCESS, count - start))]
        results = multiprocessing.get_context("fork").SimpleQueue()
        process = multiprocessing.get_context("fork").Process(
            target=work, args=(read, contents, tmp_path / name, results)
        )
        process.start()
        for number, content in enumerate(contents, start):
            while results.empty() and process.is_alive():
                time.sleep(0.0005)
            if results.empty():
                (tmp_path / "worst").write_bytes(content)
                pytest.fail(f"{kind} {number} killed its reader (exit code {process.exitcode}): {tmp_path / 'worst'}")
            how = results.get()
            ended[how] += 1
            if how not in ("read", "refused"):
                (tmp_path / "worst").write_bytes(content)
                pytest.fail(f"{kind} {number}, {tmp_path / 'worst'}: {how}")
        process.join()
    with capsys.disabled():
        print(f"\n{sum(ended.values())} {name}: {ended['read']} read, {ended['refused']} refused in one line")
    assert ended["read"] > 0
    assert ended["refused"] > count // 10
