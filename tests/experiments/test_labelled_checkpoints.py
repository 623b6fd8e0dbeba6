"""Checkpoints named as LABEL=CKPT: several of a label, and words that are none."""

from __future__ import annotations

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.experiments.labelled_checkpoints import labelled_checkpoints


def test_labels_keep_their_order_and_may_come_again():
    found = labelled_checkpoints("--models", ["a=x.pth,y.pth", "b = c=z.pth", "a=w.pth,"])
    assert found == [("a", "x.pth"), ("a", "y.pth"), ("b ", " c=z.pth"), ("a", "w.pth")]


@pytest.mark.parametrize("word", ["x.pth", "=x.pth", "a=", "a=,", "before=x.pth", "a\n=x.pth"])
def test_another_word_is_refused_with_the_form(word):
    with pytest.raises(OptionError, match="--after: expected LABEL=CKPT, any label but before, found"):
        labelled_checkpoints("--after", [word], ["before"])


def test_a_path_that_no_file_can_be_called_is_refused():
    with pytest.raises(OptionError, match="--after a: expected a path"):
        labelled_checkpoints("--after", ["a=x\0y"])
