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


class UserError(Exception):
    """An error that the user can fix. ``str(error)`` is one line.

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
        return " ".join(text.split())

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


class OptionError(UserError):
    """A setting outside its range, or settings that exclude each other."""
