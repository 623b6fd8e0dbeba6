"""A look at a pickle before it is read: nothing in it is made, looked up or called.

PyTorch's weights-only reader runs no code, but believes sizes. Tuples of tuples of one tuple, a few bytes each, take
longer than the world has to hash once they are a dict's key; a long list that is copied by every third byte fills the
memory. Here the pickle's instructions are followed with the size and depth of each value instead of the value.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

_MOST_DEPTH = 500
_MOST_STEPS = 2_000_000  # instructions; a tensor takes about 40
_MOST_ARGUMENT = 64 << 20  # bytes of one string
_MOST_DIGITS = 1024  # bytes of one whole number
_FREE_WORK = 10_000_000
_MOST_WORK = 100  # per byte of the pickle
# Functions that PyTorch allows, and whose results have a size that the pickle may choose: zeros, or a tensor's copy.
_REFUSED = {
    "__builtin__ bytearray",
    "builtins bytearray",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor",
    "torch._utils _rebuild_device_tensor_from_numpy",
}
_LEGACY_PICKLES = 5  # of a file before PyTorch 1.6: magic number, version, machine, content, storage keys
_MUTATING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}


@dataclass(slots=True)
class _Value:
    """A value's size in bytes, each shared part counted anew, and how deep it is nested."""

    size: int = 1
    depth: int = 0

    def take(self, parts: Iterable[_Value]) -> None:
        for part in parts:
            self.size += part.size
            self.depth = max(self.depth, part.depth + 1)


class _Source:
    """What ``pickletools`` reads from: counts bytes, and reads no more in one go than an honest pickle would."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.count = stream, 0

    def read(self, size: int) -> bytes:
        if size > _MOST_ARGUMENT:
            raise ValueError(f"a string of {size} bytes")
        data = self.stream.read(size)
        self.count += len(data)
        return data

    def readline(self) -> bytes:
        line = self.stream.readline(10_000)
        self.count += len(line)
        return line


def check_pickle(stream: IO[bytes]) -> None:
    """Refuse the pickle at the stream's position if reading it would take unreasonable time or memory.

    Raises:
        ValueError: that, or no pickle.
        EOFError: nothing is left in the stream.
    """
    source = _Source(stream)
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[Any, _Value] = {}
    work = steps = 0
    for operation, argument in _operations(source):
        name, steps = operation.name, steps + 1
        try:
            if name in _PUT or name == "MEMOIZE":
                memo[argument if name in _PUT else len(memo)] = stack[-1]
                continue
            if name in _GET:
                stack.append(memo[argument])
                continue
            if name == "MARK":
                marks.append(len(stack))
                continue
            parts = _popped(operation, stack, marks)
            if name in _MUTATING:
                value, parts = parts[0], parts[1:]
            else:
                value = _Value(1 + (len(argument) if isinstance(argument, str | bytes | bytearray) else 0))
        except LookupError as error:
            raise ValueError("a pickle that takes what is not there") from error
        before = value.size
        value.take(parts)
        work += value.size - (before if name in _MUTATING else 0)
        if name == "GLOBAL" and argument in _REFUSED:  # a bytearray cannot be looked up
            raise ValueError(f"{argument.replace(' ', '.')}, which no weights need")
        if isinstance(argument, int) and argument.bit_length() > 8 * _MOST_DIGITS:
            raise ValueError(f"a number of {argument.bit_length()} bits")
        if steps > _MOST_STEPS:
            raise ValueError(f"over {_MOST_STEPS} values beside the tensors")
        if value.depth > _MOST_DEPTH or work > _FREE_WORK + _MOST_WORK * source.count:
            raise ValueError("values nested too deeply, or that hold one another too often")
        stack.extend([value] * len(operation.stack_after))


def check_legacy_pickles(stream: IO[bytes]) -> None:
    """The same for the pickles in front of a file of PyTorch before 1.6, or for a plain one.

    Raises:
        ValueError: as :func:`check_pickle`.
    """
    for number in range(_LEGACY_PICKLES):
        try:
            check_pickle(stream)
        except EOFError:
            if not number:
                raise ValueError("nothing") from None
            return


def _operations(source: _Source) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    first = source.stream.read(1)
    if not first:
        raise EOFError
    source.stream.seek(-1, 1)
    try:
        for operation, argument, _ in pickletools.genops(source):  # type: ignore[arg-type]
            yield operation, argument
    except (ValueError, struct.error) as error:
        raise ValueError("no PyTorch file") from error


def _popped(operation: pickletools.OpcodeInfo, stack: list[_Value], marks: list[int]) -> list[_Value]:
    """Take from the stack what the operation takes, down to the last mark if it takes that."""
    wanted = operation.stack_before
    if pickletools.markobject in wanted:
        place = marks.pop() - wanted.index(pickletools.markobject)
    else:
        place = len(stack) - len(wanted)
    if place < 0:
        raise IndexError
    taken = stack[place:]
    del stack[place:]
    return taken
