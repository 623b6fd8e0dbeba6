"""What rounding within the nullspace gains over rounding each pixel, by stiffness: prints a table.

    python benchmarks/rounding_gain.py --ckpt-path CHECKPOINT --data-dir FOLDER [--images 32]

Photographs x are given nullspace noise with valid pixels. Each patch's error is ||W (q / 255 - x)||, of levels q.
"""

from __future__ import annotations

import torch

from ns_easyrobust.experiments.inputs import add_input_arguments, open_inputs
from ns_easyrobust.nullspace import PatchRowSpace, valid_nullspace_noise
from ns_easyrobust.nullspace.exact_noise import patchify
from ns_easyrobust.nullspace.lattice_rounding import LEVELS
from ns_easyrobust.nullspace.patch_lattice import STIFFNESS, PatchLattice
from ns_easyrobust.utils import FlagParser, derive_seed


def gains(matrix: torch.Tensor, original: torch.Tensor, given: torch.Tensor) -> dict[str, float]:
    """Plain rounding's root mean square error by that with each stiffness alone, and with all of them.

    Args:
        matrix: W, (D, n).
        original, given: patches x and z, (P, n) in [0, 1].
    """

    def size(levels: torch.Tensor) -> float:
        return float(((levels - LEVELS * original) @ matrix.T).square().mean().sqrt())

    plain, found = size((LEVELS * given).round()), {}
    for name, stiffness in [*((f"{share:g}", [share]) for share in STIFFNESS), ("all", STIFFNESS)]:
        found[name] = plain / size(PatchLattice(matrix, LEVELS, 8, stiffness=stiffness).round(original, given))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(description=__doc__)
    add_input_arguments(parser, images=32)
    args = parser.parse_args(argv)
    inputs = open_inputs(args)
    images, space = inputs.measured.pixels.cpu().double(), PatchRowSpace(inputs.model)
    generator = torch.Generator().manual_seed(derive_seed(args.seed, 1))
    noisy = images + valid_nullspace_noise(inputs.model.cpu(), images, generator=generator)
    original, given = (
        patchify(each, space.patch_size, space.input_dim).flatten(0, 1) for each in (images, noisy.clamp(0, 1))
    )
    print(f"{args.model}, seed {args.seed}, {len(images)} images, {len(original)} patches")
    print("stiffness  plain error / error")
    for name, gain in gains(space.matrix, original, given).items():
        print(f"{name:>9}  {gain:.2f}")


if __name__ == "__main__":
    main()
