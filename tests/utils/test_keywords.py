"""``--model-kwargs``: what it takes for the architecture, and what it leaves to other flags."""

from __future__ import annotations

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.utils import FlagParser, add_model_kwargs


def parse(*words, flags=()):
    parser = FlagParser()
    add_model_kwargs(parser)
    for flag in flags:
        parser.add_argument(flag)
    return parser.parse_args(["--model-kwargs", *words]).model_kwargs


@pytest.mark.parametrize("word", ["arch=x", "num_classes=3", "pretrained=True", "checkpoint_path=x"])
def test_what_is_never_an_argument_is_refused(word):
    with pytest.raises(OptionError, match="is not for it; give") as caught:
        parse(word)
    assert "\n" not in str(caught.value)


def test_an_argument_with_a_flag_is_refused_where_that_flag_is():
    assert parse("img_size=48", "drop_rate=0.1", "path=x", "new_head=True") == {
        "img_size": 48,
        "drop_rate": 0.1,
        "path": "x",
        "new_head": True,
    }
    with pytest.raises(OptionError, match="img_size is not for it; give --img-size"):
        parse("img_size=48", flags=["--img-size"])
    with pytest.raises(OptionError, match="drop_rate is not for it; give --drop"):
        parse("drop_rate=0.1", flags=["--img-size", "--drop"])
