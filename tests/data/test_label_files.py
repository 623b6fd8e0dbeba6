"""Label files: what is read as equal, and what is none."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from helpers.folders import fill, labels_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ns_easyrobust.data.benchmarks import imagenet_val
from ns_easyrobust.data.label_files import read_labels
from ns_easyrobust.errors import DataError

LINES = ("x.JPEG 3", "y.JPEG 1", "z.JPEG 0")
WRITTEN = {
    "plain": "\n".join(LINES),
    "ending": "\n".join((*LINES, "")),
    "blank lines": "\n\n".join((*LINES, "", "  ", "")),
    "CRLF": "\r\n".join((*LINES, "")),
    "CR": "\r".join(LINES),
    "BOM": "\ufeff" + "\n".join(LINES),
    "tabs": "\n".join(LINES).replace(" ", "\t"),
    "twice": "\n".join(LINES * 2),
}


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_what_does_not_change_the_labels(tmp_path, how, kind):
    text = WRITTEN[how] if kind == "txt" else WRITTEN[how].replace("\t", " ").replace(" ", ",")
    path = tmp_path / f"val.{kind}"
    path.write_bytes(text.encode())
    assert read_labels(path) == {"x": 3, "y": 1, "z": 0}


def test_names_that_are_no_utf8(tmp_path):
    root = fill(tmp_path / "imagenet-val", os.fsdecode(b"caf\xe9.png"), "b.png")
    (root / "val.txt").write_bytes(b"caf\xe9.png 1\nb.png 0\n")
    assert labels_of(imagenet_val(root, 2)) == {os.fsdecode(b"caf\xe9.png"): 1, "b.png": 0}


def test_a_label_file_that_is_none_is_named(tmp_path):
    root = fill(tmp_path / "imagenet-val", "x.png")
    (root / "val.txt").write_text("x.png " + "9" * 5000)
    with pytest.raises(DataError, match=rf"found neither, and in {root}/val\.txt no list of them"):
        imagenet_val(root, 10)
    (root / "val.txt").unlink()
    os.mkfifo(root / "val.txt")
    os.mkfifo(root / "more.csv")
    (root / "LOC_val_solution.csv").symlink_to("nowhere")
    with pytest.raises(DataError, match="found neither"):
        imagenet_val(root, 10)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(content=st.one_of(st.binary(max_size=60), st.text('x.PNG 0123,"\n\r\0\ufeff\x85n', max_size=40).map(str.encode)))
@example(content=b"x 1\nx 2")
@example(content="x 1".encode("utf-16"))
@example(content=b'"' + b"x," * 100_000)
def test_any_bytes_are_labels_or_an_error(tmp_path_factory, content):
    for name in ("val.txt", "val.csv"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        with suppress(DataError):
            labels = read_labels(path)
            assert labels is None or all(label >= 0 for label in labels.values())
