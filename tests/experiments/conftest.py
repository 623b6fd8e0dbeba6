"""What tests of experiments share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from matplotlib.figure import Figure

_BLANK = b"\x89PNG"


@pytest.fixture
def draw_no_more() -> Iterator[Callable[[], None]]:
    """Once called, pictures are built and written, but blank: to lay one out takes longer than the experiment."""

    def blank(figure: Figure, file: Path | IO[bytes], **options: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(_BLANK)
        else:
            file.write(_BLANK)

    with pytest.MonkeyPatch.context() as patch:
        yield lambda: patch.setattr(Figure, "savefig", blank)
