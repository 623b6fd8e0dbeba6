from __future__ import annotations

import pytest

from ns_easyrobust.data.benchmarks import ALEXNET_ERROR
from ns_easyrobust.evaluation.imagenet_c import sum_up_corruptions
from ns_easyrobust.evaluation.recorder import Recorder
from ns_easyrobust.evaluation.results_file import read_records
from ns_easyrobust.evaluation.task import Outcome


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        ([("fog", s) for s in range(1, 6)] + [("contrast", s) for s in range(1, 6)] + [("snow", 3)],
         "snow 3, fog contrast 1-5 (11 of 75)"),
        ([("fog", 1), ("fog", 2), ("fog", 5), ("snow", 4), ("snow", 5)], "snow 4-5, fog 1 2 5 (5 of 75)"),
        ([(name, 5) for name in ALEXNET_ERROR], "all 5 (15 of 75)"),
    ],
)  # fmt: skip
def test_a_mean_of_a_part_names_its_folders(tmp_path, folders, named):
    recorder = Recorder(tmp_path / "r.jsonl", {"label": "m", "model": "m"})
    outcomes = dict.fromkeys(folders, Outcome(10, 4))
    assert sum_up_corruptions(tmp_path, outcomes, recorder, {"subset": "all"}, 10) == (40, None)
    (record,) = read_records(tmp_path / "r.jsonl")
    assert (record.metric, record.protocol["folders"]) == ("top1_mean", named)
