"""Errors that a user can cause.

Each carries one line: what was expected, what was found, what to do. The
command line prints that line and exits with code 2; a library user catches
:class:`UserError` or one of its subclasses.

Example:
    >>> try:
    ...     load_model("vit_micro_patch8_32", "nowhere.pth.tar")
    ... except errors.UserError as error:
    ...     print(type(error).__name__, error.exit_code)
    CheckpointError 2
"""

from __future__ import annotations

import re
import unicodedata

# Control and format characters (escape sequences, text direction) and line separators; lone surrogates stand for the
# bytes of a name that is not UTF-8, which whatever prints it escapes.
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Zl", "Zp")
_SECRET_SETTING = re.compile(
    r"([?&#][^=&#\s]*(?:token|sig|key|secret|passw|auth|cred)[^=&#\s]*=)[^&#\s]+", re.IGNORECASE
)
_FULL = re.compile("can't allocate memory|not enough memory|out of memory")  # of a CPU or a GPU, as PyTorch says it
_LONGEST_LINE = 2000  # characters; longer where a name or value of the user's is that long


def printable(text: str) -> str:
    """``text`` with control and format characters as escapes (``\\x1b``), so that it cannot steer a terminal.

    Example:
        >>> errors.printable("ViT\\x1b[2J")
        'ViT\\\\x1b[2J'
    """
    hidden = (unicodedata.category(character) in _HIDDEN_CATEGORIES for character in text)
    return "".join(
        repr(character)[1:-1] if is_hidden else character for character, is_hidden in zip(text, hidden, strict=True)
    )


def without_secrets(text: str) -> str:
    """``text`` without the secrets of each URL: what is before the ``@``, tokens and signatures after ``?`` or ``#``.

    Example:
        >>> errors.without_secrets("https://me:secret@example.org/vit.pth")
        'https://***@example.org/vit.pth'
    """
    return _SECRET_SETTING.sub(r"\1***", re.sub(r"(\w://)[^/?#\s]*@", r"\1***@", text))


def is_full_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of the machine or of its GPU is full, in Python's words or PyTorch's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_FULL.search(str(error))))


class UserError(Exception):
    """An error that the user can fix. ``str(error)`` is one line, printable and without the secrets of URLs.

    It is built from a single string so that a data worker can pass it to the
    main process: ``torch.utils.data`` rebuilds a worker's exception as
    ``type(error)(traceback_text)``, and :attr:`line` recovers the message.
    """

    exit_code = 2

    @property
    def line(self) -> str:
        """The message on one line, also if the error was raised in another process."""
        text = str(self.args[0]) if self.args else type(self).__name__
        marker = f"{type(self).__name__}: "
        if "Original Traceback" in text and marker in text:
            text = text.rsplit(marker, 1)[1]
        line = printable(without_secrets(" ".join(text.split())))
        if len(line) > _LONGEST_LINE:
            line = f"{line[: _LONGEST_LINE // 2]} [...] {line[-_LONGEST_LINE // 2 :]}"
        return line

    def __str__(self) -> str:
        return self.line


class ModelError(UserError):
    """A model that cannot be used: no patch embedding, several of them, or a compiled one."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, unsafe or for another model."""


class DataError(UserError):
    """A data folder or an image that is not what was expected."""


class NoiseError(UserError):
    """Noise of the wrong shape, or a synthesis that cannot continue."""


class TrainingError(UserError):
    """A training run that cannot start or cannot continue."""


class OutputError(UserError):
    """An output folder or file that cannot or must not be written."""


class NotRunError(UserError):
    """Something asked for by name was left out, and everything else is done."""

    exit_code = 3


class OptionError(UserError):
    """A setting outside its range, or settings that exclude each other."""


class MissingPackageError(OptionError):
    """A setting that needs another package, which is not installed."""
