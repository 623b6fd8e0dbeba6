"""What a training costs, by sums done by hand."""

from __future__ import annotations

import pytest

from ns_easyrobust.training import build_parser, training_cost
from ns_easyrobust.training.costs import TrainingCost

SPHERE = "--ns-solver sphere --ns-max-steps 100 --ns-interval 20"


@pytest.mark.parametrize(
    ("flags", "update", "synthesis"),
    [
        ("", 3, 0),
        (f"--aug nullspace {SPHERE}", 6, 300),
        (f"--aug random {SPHERE}", 6, 0),
        (f"--aug sensitive {SPHERE}", 6, 300),
        (f"--aug nullspace,permuted {SPHERE}", 9, 600),
        ("--sam-rho 0.05", 6, 0),
        (f"--aug nullspace {SPHERE} --sam-rho 0.05", 12, 300),  # the second pass has the first one's noise
        ("--aug pixel-noise --sam-rho 0.05", 12, 0),
        ("--aug madry", 3 + 23, 0),  # 10 steps of a forward and a backward to the pixels, then a plain update's 3
        ("--aug madry --madry-alone --madry-steps 7", 7 * 2 + 3, 0),
        ("--grad-accum-steps 4", 12, 0),
        ("--aa augmix-m1-w3 --augmix-ops published --aug-splits 3 --jsd-loss", 9, 0),
    ],
)
def test_an_update_and_a_synthesis(flags, update, synthesis):
    words = f"--model vit_micro_patch8_32 --data-dir data {flags}".split()
    cost = training_cost(build_parser().parse_args(words))
    assert (cost.update, cost.synthesis, cost.interval) == (update, synthesis, 20 if synthesis else 1)


@pytest.mark.parametrize("cost", [TrainingCost(3), TrainingCost(26), TrainingCost(0.1), TrainingCost(6, 300, 40)])
def test_a_budget_buys_the_most_updates_that_cost_no_more(cost):
    for updates in range(1, 130):
        budget = cost.of(updates)
        assert cost.updates_within(budget) == updates
        assert cost.updates_within(budget - cost.update / 2) == updates - 1
    assert TrainingCost(6, 300, 40).updates_within(305) == 0  # a synthesis, and less than an update
