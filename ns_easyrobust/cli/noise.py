"""The verb ``noise``: synthesize nullspace noise for a checkpoint, measure its influence, and save it."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data import FolderView, Preprocessing, open_image_folder
from ..errors import NoiseError, OutputError, printable
from ..evaluation import add_checkpoint_arguments, checkpoint_model
from ..nullspace import Noise, Step
from ..training import add_noise_args, config_from_args
from ..utils import (
    FileLock,
    add_machine_arguments,
    add_model_arguments,
    file_or_folder,
    int_from,
    on_first_rank,
    pick_device,
    process_group,
    rank,
    require_replaceable,
    world_size,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: the model, the images, the settings of the synthesis, and the output file."""
    add_model_arguments(parser)
    add_machine_arguments(parser)
    add_checkpoint_arguments(parser)
    add_noise_args(parser)
    parser.add_argument(
        "--data-dir", type=file_or_folder, required=True, metavar="DIR", help="image folder, e.g. ImageNet's train/"
    )
    parser.add_argument("-b", "--batch-size", type=int_from(1, 2**20), default=128, metavar="N", help="default: 128")
    parser.add_argument(
        "--held-out", type=int_from(1, 10**9), default=256, metavar="N", help="images to judge the noise on"
    )
    parser.add_argument(
        "--start",
        type=file_or_folder,
        metavar="FILE",
        help="a saved noise to go on from, or to judge (--ns-max-steps 0)",
    )
    parser.add_argument("--output", type=file_or_folder, default="noise.pt", metavar="FILE", help="default: noise.pt")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")


def _row(name: str, noise: Noise, influence: Any) -> str:
    return (
        f"{name:22} {noise.norm:10.4g} {influence.mse_probability:16.4g} {influence.mse_probability_upper:12.4g} "
        f"{100 * influence.agreement:10.1f}%"
    )


def _describe_end(noise: Noise, max_steps: int, batch: int) -> str:
    """Describe how the synthesis ended."""
    eps = f"eps = {noise.config.eps:g}"
    if max_steps == 0:
        return "0 steps, as asked: measured alone"
    if noise.untouched:
        return (
            f"0 steps: the start was already under {eps} on a minibatch of {batch} and is saved as it was, as the "
            f"model hardly reacts to it (a larger --ns-limit than {noise.config.limit:g} makes a larger start)"
        )
    if noise.config.solver in ("sphere", "sensitive"):
        result = "set just" if noise.stopped else "not got"
        return f"{noise.steps} turns, then {result} under {eps} on the stream's next images"
    return f"{noise.steps} steps, {'stopped under' if noise.stopped else 'never under'} {eps} on a minibatch of {batch}"


def _start(path: str, block: int) -> Noise:
    """The saved noise to start from.

    Raises:
        NoiseError: there is none, or one for another place in the model.
    """
    noise = Noise.load(path)
    if (found := noise.config.block) != block:
        raise NoiseError(
            f"{printable(path)}: expected noise for --ns-block {block}, found one for {found}. Pass --ns-block {found}."
        )
    return noise


def run(args: argparse.Namespace) -> None:
    """Synthesize the noise, compare it with its permutation on held-out images, and save it."""
    import torch
    from torch.utils.data import DataLoader

    from ..data import endless_batches, split_indices
    from ..nullspace import measure, synthesize

    def hold_output() -> None:
        """Keep a second process away from the file, whose noise would be lost or would replace this one's."""
        require_replaceable(output)
        held.enter_context(FileLock(output.with_name(f".{output.name[:200]}.lock"), "this noise"))
        if output.exists() and not args.overwrite:
            raise OutputError(f"{output} exists: expected a new file. Pass --overwrite or another --output.")

    output, held = Path(args.output), ExitStack()
    with held, process_group(pick_device(args.device)) as device:
        on_first_rank(hold_output, device)
        config = config_from_args(args)
        start = _start(args.start, config.block).value if args.start else None
        model, _ = checkpoint_model(args, device)
        folder: Any = open_image_folder(
            args.data_dir, Preprocessing(args.input_size, args.crop_pct, args.interpolation).transform()
        )
        held_out, remaining = split_indices(range(len(folder)), min(args.held_out, len(folder) // 2), args.seed)
        loader: DataLoader[Any] = DataLoader(folder, args.batch_size, num_workers=args.workers)
        rank_images: Any = FolderView(folder, held_out[rank() :: world_size()], folder.transform)
        held_out_loader: DataLoader[Any] = DataLoader(rank_images, args.batch_size, num_workers=args.workers)
        stream = endless_batches(loader, seed=args.seed, rank=rank(), world_size=world_size(), indices=remaining)
        with tqdm(total=config.max_steps, desc="noise", disable=None if rank() == 0 else True) as bar:

            def update_bar(step: Step) -> None:
                bar.set_postfix(norm=f"{step.norm:.4g}", mse_probability=f"{step.mse_probability:.4g}", refresh=False)
                bar.update()

            noise = synthesize(
                model,
                stream,
                config,
                start=start,
                held_out=held_out_loader,
                on_step=update_bar,
                generator=torch.Generator().manual_seed(args.seed),
            )
        control = noise.permuted(torch.Generator().manual_seed(args.seed))
        control_influence = measure(model, held_out_loader, control.value, block=config.block)
        if rank() == 0:
            noise.save(output)
            assert noise.held_out is not None
            print(
                f"{_describe_end(noise, config.max_steps, min(args.batch_size, len(remaining)))}; "
                f"on {noise.held_out.n} held-out images {'converged' if noise.converged else 'not converged'} "
                "(95% upper bound against eps)"
            )
            print(f"{'':22} {'norm':>10} {'mse_probability':>16} {'upper (95%)':>12} {'agreement':>11}")
            origin = "as it was" if config.max_steps == 0 else config.solver
            print(_row(f"noise ({origin})", noise, noise.held_out))
            print(_row("its permutation", control, control_influence))
            print(f"the largest of {noise.value[..., 0].numel()} tokens holds {100 * noise.token_share:.0f}% of norm^2")
            print(f"saved to {printable(str(output))}")
