"""Image files that break readers, and mutations of good ones."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def with_chunks(chunks: bytes) -> bytes:
    """A small PNG with more chunks behind its header."""
    good = encoded(small())
    return good[:33] + chunks + good[33:]


@cache
def small(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _tiff(*entries: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value or offset) of each entry."""
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", next_directory)


@cache
def hostile_images() -> dict[str, bytes]:
    """Files by name that hold no image that may be used, or none that can be decoded in bounded time and memory."""
    gif, jpeg, png = encoded(small("P"), "GIF"), encoded(small(), "JPEG"), encoded(small())
    first_block = gif.index(b"\x2c", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    floats = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    return {
        "empty.png": b"",
        "text.png": b"no image",
        "torn.png": png[:60],
        "torn.jpg": jpeg[:-40],
        "head.jpg": b"\xff\xd8\xff\xe0",
        "bomb.png": png_header(60_000, 60_000) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""),
        "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "bomb.ppm": b"P6 60000 60000 255\n",
        "bomb.gif.jpg": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "no-pixels.ppm": b"P6 0 0 255\n",
        "no-width.png": png_header(0, 5) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        "line.png": encoded(Image.new("1", (60_000, 1))),
        "iccp-bomb.png": with_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 2**26))),
        "text-bomb.png": with_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2**26)) * 3),
        "comments.gif.jpg": gif[:first_block] + b"\x21\xfe\x01x\0" * 300_000 + gif[first_block:],
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "loop.tif": _tiff((256, 3, 1, 9), (257, 3, 1, 9), next_directory=8),
        "counts.tif": _tiff((256, 4, 2**32 - 1, 8), (257, 4, 2**32 - 1, 8), (258, 3, 2**32 - 1, 8)),
        "floats.tif": encoded(floats, "TIFF"),
        "integers.tif": encoded(Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)), "TIFF"),
        "twelve-bit.jpg": jpeg.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    }


def mutated(rng: random.Random, content: bytes) -> bytes:
    """``content`` with a few bytes changed, cut out, doubled or moved; never the same as before."""
    changed = bytearray(content)
    kinds: tuple[Callable[[], None], ...] = (
        lambda: changed.__setitem__(rng.randrange(len(changed)), rng.randrange(256)),
        lambda: changed.__delitem__(slice(rng.randrange(len(changed)), None)),
        lambda: changed.__delitem__(slice(at := rng.randrange(len(changed)), at + rng.randrange(1, 9))),
        lambda: changed.__setitem__(slice(at := rng.randrange(len(changed)), at), rng.randbytes(rng.randrange(1, 9))),
        lambda: changed.__setitem__(slice(at := rng.randrange(len(changed)), at + 4), struct.pack(">I", 2**32 - 1)),
        lambda: changed.extend(changed[rng.randrange(len(changed)) :]),
    )
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if changed:
            rng.choice(kinds)()
    return bytes(changed) if bytes(changed) != content else content + b"\0"
