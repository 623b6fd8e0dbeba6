from __future__ import annotations

import numpy as np
import pytest

from ns_easyrobust.data.corruptions.blur import _displaced


@pytest.mark.parametrize("reach", [1, 2, 4])
@pytest.mark.parametrize("size", [(11, 17), (40, 9), (8, 8), (30, 30)])
def test_chains_of_displacements_as_the_loop_over_pixels(reach, size):
    """The published loop, whose "swap" of two rows of an array leaves a copy."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    draws, expected = np.random.default_rng(7), image.copy()
    for h in range(size[0] - reach, reach, -1):
        for w in range(size[1] - reach, reach, -1):
            dx, dy = draws.integers(-reach, reach, size=(2,))
            expected[h, w], expected[h + dy, w + dx] = expected[h + dy, w + dx], expected[h, w]
    assert np.array_equal(_displaced(image, np.random.default_rng(7), reach), expected)
