"""What torchrun starts in test_distributed: the verb ``train``, and a file of what each rank saw and ended with."""

import sys
from pathlib import Path

import torch

from ns_easyrobust.models.vit import unwrap
from ns_easyrobust.training import trainer as module
from ns_easyrobust.training.options import parse_args
from ns_easyrobust.utils.distributed import rank


def main(notes: str, argv: list[str]) -> None:
    torch.set_num_threads(1)
    step, fit, seen = module._train_step, module._fit, []

    def watched_step(run, batches):
        seen.append(torch.cat([images for images, _ in batches]))
        return step(run, batches)

    def watched_fit(run, *more):
        fit(run, *more)
        found = {
            "seen": torch.stack(seen),
            "weights": unwrap(run.model).state_dict(),
            "noise": run.augmentation.noise.value,
            "history": run.augmentation.history,
        }
        torch.save(found, Path(notes) / f"rank{rank()}.pt")

    module._train_step, module._fit = watched_step, watched_fit
    module.train(parse_args(argv))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
