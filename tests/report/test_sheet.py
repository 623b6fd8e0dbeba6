"""Values of protocols as text."""

from __future__ import annotations

from typing import Any

import pytest

from ns_easyrobust.report.sheet import format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4 / 255, "4/255"),
        (0.5 / 255, "0.5/255"),
        (0.25 / 255, "0.25/255"),
        (1.5 / 255, "0.00588235"),
        (0.05, "0.05"),  # 12.75/255
        (0.03, "0.03"),
        (0.0, "0"),
        (1.0, "1"),
        (-1 / 255, "-0.00392157"),
        ([1 / 255, True, None], "(1/255, yes, none)"),
    ],
)
def test_radii_are_steps_of_pixels_where_that_is_simpler(value: Any, text: str) -> None:
    assert format_value(value) == text
