"""What the experiments of the paper's figures and tables share: flags, a folder of results, a report."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..utils import FileLock, exact_float32, file_or_folder, os_errors_as_output_errors
from .registry import Command, Experiment
from .results import Results

if TYPE_CHECKING:
    from ..report import FigureReport

_logger = logging.getLogger(__name__)


class FigureExperiment(Experiment):
    """Numbers that are kept as they are measured, so that a second call goes on, and a report made of them alone.

    Its files are called by its name.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the experiment's own flags, and those of its output."""
        self.add_inputs(parser)
        output = parser.add_argument_group("output")
        default = f"output/{self.name}"
        output.add_argument(
            "-o", "--output", type=file_or_folder, default=default, metavar="FOLDER",
            help=f"where everything goes; what is done there already is not done again (default: {default})",
        )  # fmt: skip
        output.add_argument("--force", action="store_true", help="begin anew, whatever is there")

    @abstractmethod
    def add_inputs(self, parser: argparse.ArgumentParser) -> None:
        """Add the experiment's own flags."""

    @abstractmethod
    def measure(self, args: argparse.Namespace, results: Results) -> None:
        """Check everything, call ``results.begin``, and add what is not there yet.

        While it runs float32 is float32 on a GPU, too (:func:`~ns_easyrobust.utils.exact_float32`).

        Raises:
            UserError: a checkpoint, folder or flag is not what it should be, or differs from those of an earlier call.
        """

    @abstractmethod
    def report(self, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], parts: Path) -> FigureReport:
        """What is shown of the numbers.

        Args:
            protocol, lines: as :class:`Results` has them.
            parts: folder of what lines cannot hold.
        """

    def run(self, args: argparse.Namespace, commands: Mapping[str, Command]) -> Iterator[str]:
        """Measure what is not measured yet, and write the report."""
        folder = Path(args.output)
        is_new = not folder.exists()
        with os_errors_as_output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", "this experiment"):
                shown = self._measured(args, folder)
        except BaseException:
            if is_new:
                with suppress(OSError):  # something is in it
                    folder.rmdir()
            raise
        yield shown.to_text(shutil.get_terminal_size((120, 24)).columns)
        yield f"report: {folder / self.name}.md"

    def _measured(self, args: argparse.Namespace, folder: Path) -> FigureReport:
        results, before = Results(folder, self.name, args.force), time.monotonic()
        known = len(results.lines)
        with exact_float32():
            self.measure(args, results)
        if len(results.lines) > known:
            results.took(time.monotonic() - before)
        else:
            _logger.info("nothing new to measure: all of it is in %s", results.path)
        shown = self._report(results)
        shown.write(folder, self.name)
        return shown

    def render(self, folder: Path) -> FigureReport:
        """The report of what ``folder`` holds; nothing is measured.

        Raises:
            DataError: there are no numbers of this experiment.
        """
        results = Results(folder, self.name)
        if not results.lines:
            raise DataError(f"{results.path}: expected the numbers of experiment {self.name}, found none. Run it.")
        return self._report(results)

    def _report(self, results: Results) -> FigureReport:
        shown = self.report(results.protocol, results.lines, results.parts)
        return replace(shown, notes=[*shown.notes, results.origin()])
