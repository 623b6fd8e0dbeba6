"""Logits out of what models return."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch

from ns_easyrobust.errors import ModelError
from ns_easyrobust.models import logits_of

LOGITS = torch.arange(6.0).view(2, 3)


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dict whose entries are attributes too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


@dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "output", [LOGITS, {"logits": LOGITS}, ModelOutput(loss=LOGITS[0, 0], logits=LOGITS), Output(LOGITS)]
)
def test_logits_are_found(output):
    assert logits_of(output) is LOGITS


def test_whole_numbers_become_floats():
    assert torch.equal(logits_of(LOGITS.to(torch.int32)), LOGITS)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ((LOGITS, LOGITS), "a tuple of 2"),
        ([LOGITS], "a list of 1"),
        ({"features": LOGITS}, "a dict of features"),
        (ModelOutput(features=LOGITS), "a dict of features"),
        (LOGITS[None], r"a tensor of shape \(1, 2, 3\)"),
        (LOGITS > 0, "a strided tensor of torch.bool"),
        (LOGITS.to(torch.complex64), "a strided tensor of torch.complex64"),
        (None, "NoneType"),
        (LOGITS.to_sparse(), "a sparse_coo tensor of torch.float32"),
    ],
)
def test_what_holds_no_logits_is_named(output, found):
    with pytest.raises(ModelError, match=f"found {found}"):
        logits_of(output)


def test_a_single_image_may_have_lost_its_batch_and_another_count_is_refused():
    assert torch.equal(logits_of(LOGITS[0], 1), LOGITS[:1])
    assert torch.equal(logits_of({"logits": LOGITS[0]}, 1), LOGITS[:1])
    assert logits_of(LOGITS, 2) is LOGITS
    for output, images in ((LOGITS, 1), (LOGITS[:1], 2), (LOGITS[0], 2), (LOGITS[0], 3)):
        with pytest.raises(ModelError, match=rf"expected logits \({images}, K\)"):
            logits_of(output, images)
