"""What torchrun starts in test_trainer_methods: a short run of each method, and a file of what the ranks ended with."""

import sys
from pathlib import Path

import torch

from ns_easyrobust.models.vit import unwrap
from ns_easyrobust.training import trainer as module
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.utils.distributed import process_group, rank


def main(notes: str, runs: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    fit, ended = module._fit, {}

    def watched_fit(run, *more):
        start = [parameter.detach().clone() for parameter in run.model.parameters()]
        fit(run, *more)
        weights = list(unwrap(run.model).parameters())
        moved = sum(float((now - before).detach().abs().sum()) for now, before in zip(weights, start, strict=True))
        ended[run.args.experiment] = {"weights": [weight.detach() for weight in weights], "moved": moved}

    module._fit = watched_fit
    with process_group(torch.device("cpu")):
        for name, words in runs.items():
            module.train(parse_args([*words, "--experiment", name, "--output", notes]))
        torch.save(ended, Path(notes) / f"rank{rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], {words.split()[0]: words.split()[1:] for words in sys.argv[2:]})
