"""The settings of a synthesis: what no sane run has ends in one line that names it."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.nullspace.config import NoiseConfig
from ns_easyrobust.utils import FlagParser, add_settings

HOSTILE: list[tuple[str, Any]] = [
    ("lr", 1e38),
    ("lr", math.nan),
    ("limit", 1e30),
    ("limit", 0.0),
    ("eps", 3.0),  # meant as percent
    ("eps", -0.1),
    ("weight_decay", 1e9),
    ("weight_decay", math.inf),
    ("turn", 1e5),
    ("max_steps", 10**12),
    ("minibatch", 10**12),
    ("pool", -2),
    ("pool", 10**12),
    ("reuse", -1),
    ("patience", 10**12),
    ("cosine_steps", 10**12),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_what_no_run_has_is_refused_by_name_in_library_and_flags(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"noise {name}: expected a (whole )?number"):
        NoiseConfig(**{name: value})
    parser = FlagParser(prog="x")
    add_settings(parser, NoiseConfig, "ns-")
    if value != 0:  # 0 is refused by the configuration alone
        with pytest.raises(OptionError, match=f"--ns-{name.replace('_', '-')}: expected"):
            parser.parse_args([f"--ns-{name.replace('_', '-')}={value}"])


@pytest.mark.parametrize(("name", "value"), [("max_steps", 1.5), ("eps", "0.03"), ("lr", None)])
def test_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"noise {name}: expected a"):
        NoiseConfig(**{name: value})


def test_the_defaults_and_the_bounds_are_allowed() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser, NoiseConfig, "ns-")
    assert vars(parser.parse_args(["--ns-eps", "2", "--ns-pool=-1"]))["ns_eps"] == 2
    assert NoiseConfig(eps=2, limit=1e-9, pool=0).eps == 2
