"""Results files that nobody meant to write: lines that are no records or odd ones, and mutations of whole files."""

from __future__ import annotations

import json
import random
from typing import Any

from ns_easyrobust.errors import printable
from ns_easyrobust.evaluation.records import Record

from .records import make

ESCAPES = "\x1b[2J\x1b]0;owned\x07"
# Beginnings of formulas, Markdown and HTML with a life of its own, TeX, a byte that is no UTF-8, glyphs no font has.
TEXTS = (
    ESCAPES,
    "a\nb\r\tc\0d",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "-2+3",
    "| a | b |",
    "```\n# head",
    "[x](javascript:alert(1)) ![y](http://tracker/z.png)",
    "<img src=x onerror=alert(1)><!-- ",
    "</td></table><script>alert(1)</script>",
    "$\\frac{1}{0}$ \\begin{x} $$",
    "bad\udcff\ud800.pth",
    "\u202egnp.elif\u200b\u2066",
    "\U0001f600\U000f0000\ufffe",
    "https://me:secret@example.org/vit.pth",
    "1. one",
    "_x_ __y__",
)
_NUMBERS = ("NaN", "-Infinity", "1e999", "-1", "0.5", "true", "1" + "0" * 400, "9" * 5000, "1e308", "9007199254740993")


def hostile_lines() -> list[bytes]:
    """Lines of a results file; some are records that must be shown, the rest must be refused in one line."""
    plain = json.loads(make().to_json())
    values = [None, [], {}, [["x"]], {"a": {"b": [1]}}, True, -1, 1.5, "", "x" * 20_000, *TEXTS]
    lines = [dumped({**plain, name: value}) for name in plain for value in values]
    lines += [dumped({**plain, name: "@"}).replace(b'"@"', number.encode()) for name in plain for number in _NUMBERS]
    for name in ("preset", "subset", "corruption", "severity", "epsilon", "norm", "mean", "batch_size", "radius"):
        lines += [dumped({**plain, "protocol": {name: value}}) for value in values]
    folder = {**plain, "suite": "imagenet-c", "protocol": {"corruption": "fog", "severity": 1}}
    for name in ("corruption", "severity"):
        lines += [dumped({**folder, "protocol": {**folder["protocol"], name: value}}) for value in values]
    for text in TEXTS:
        lines.append(dumped({**plain, "protocol": {text: [text, {text: text}]}, "versions": {text: text}}))
    deep = b"[" * 5000 + b"]" * 5000
    lines += [deep, dumped({**plain, "protocol": "@"}).replace(b'"@"', b'{"a":' + deep + b"}")]
    lines += [dumped({**plain, "protocol": "@"}).replace(b'"@"', b'{"a":' * 40 + b"1" + b"}" * 40)]
    lines += [dumped(plain)[:-1] + b', "n": 100}', dumped({**plain, "protocol": {f"{i}": i for i in range(20_000)}})]
    lines += [b"\xef\xbb\xbf" + dumped(plain), dumped(plain) + b"\r", dumped(plain).decode().encode("utf-16")]
    lines += [b"", b"\0", b"null", b'"', b"{}", b'{"suite": ', b"\xff\xfe", b"[" * 100_000]
    return lines


def dumped(values: dict[str, Any]) -> bytes:
    """A line as json.dumps writes it, a half surrogate pair as it came from a file's name."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")


def odd_records() -> list[Record]:
    """A row "base", and for each of :data:`TEXTS` a valid record with it in every field that takes it."""
    records = [make("base")]
    protocols = [{text: [text, {text: text}] for text in TEXTS}, dict.fromkeys(TEXTS, "another")]  # two columns
    for number, text in enumerate(TEXTS):
        changes = dict.fromkeys(("machine", "weights", "checkpoint", "checkpoint_sha256", "images", "task"), text)
        label = text if printable(text) == text else f"row {number}"
        records.append(make(label, protocol=protocols[number % 2], versions={text: text}, **changes))
    return records


def mutated(rng: random.Random, content: bytes) -> bytes:
    """``content`` with one to four changes: bytes flipped, cut, repeated or replaced by a hostile value or line."""
    for _ in range(rng.randint(1, 4)):
        content = rng.choice(_MUTATIONS)(rng, content)
    return content


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[end:]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start : start + 2000] + content[end:]


def _swap_value(rng: random.Random, content: bytes) -> bytes:
    """Another value behind a colon, mostly one that JSON can hold."""
    colons = [index for index, byte in enumerate(content) if byte == ord(":")]
    if not colons:
        return content
    start = rng.choice(colons) + 1
    ends = [index for index in (content.find(end, start) for end in (b",", b"}", b"\n")) if index > 0]
    texts = [json.dumps(text) for text in TEXTS]
    value = rng.choice([*_NUMBERS, *texts, "null", "[]", "{}", '["linf"]', '{"a": [1]}', "[" * rng.randint(1, 3000)])
    return content[:start] + value.encode("utf-8", "surrogatepass") + content[min(ends, default=len(content)) :]


def _swap_line(rng: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    lines[rng.randrange(len(lines))] = rng.choice(hostile_lines())
    return b"\n".join(lines)


_MUTATIONS = (_flip, _cut, _repeat, _swap_value, _swap_value, _swap_line)
