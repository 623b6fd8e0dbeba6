"""Other packages' warnings: the known ones are silent, others are shown."""

from __future__ import annotations

import warnings

from torch.utils.data import DataLoader

from ns_easyrobust.cli.foreign_warnings import silence_foreign_warnings


def test_torchs_advice_on_workers_is_silent_and_nothing_else():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        DataLoader([0], num_workers=1000)  # starts none yet
        assert [warning.category for warning in shown] == [UserWarning]
        silence_foreign_warnings()
        DataLoader([0], num_workers=1000)
        warnings.warn("This is news", UserWarning, stacklevel=1)
    assert ["This DataLoader" in str(w.message) for w in shown] == [True, False]
