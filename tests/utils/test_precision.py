"""Float32 on a GPU: no TF32 for a while, and all flags as they were afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ns_easyrobust.utils import exact_float32


def flags() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    products = torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, *products


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[:2]
    if torch.get_float32_matmul_precision() != before[2]:
        torch.set_float32_matmul_precision(before[2])


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_tf32_is_off_for_a_while(precision, convolutions):
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(precision)
    before = flags()
    with pytest.raises(KeyError), exact_float32():
        assert flags() == (*before[:3], False, False, "highest")
        raise KeyError
    assert flags() == before


def test_the_cpus_products_are_left_as_they_were():
    """``allow_tf32`` alone does not concern the CPU, whose products must not become less exact afterwards."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with exact_float32():
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert getattr(matmul, "fp32_precision", None) == before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
