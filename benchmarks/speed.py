"""How fast the evaluation, the synthesis, corruptions and several processes are, beside what users have today.

    python benchmarks/speed.py evaluate      # beside EasyRobust's functions and a plain PatchFool
    python benchmarks/speed.py synthesize    # beside the published loop: a step, and a noise
    python benchmarks/speed.py corrupt DIR   # beside the package imagecorruptions
    python benchmarks/speed.py ranks         # one, two and four processes with the same total batch

``--help`` after the word lists its flags. Set OMP_NUM_THREADS=1 on a machine with few cores.
"""

from __future__ import annotations

import sys

import speed_corrupt
import speed_evaluate
import speed_ranks
import speed_synthesize

from ns_easyrobust.errors import UserError

WHAT = {"corrupt": speed_corrupt, "evaluate": speed_evaluate, "synthesize": speed_synthesize, "ranks": speed_ranks}


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in WHAT:
        sys.exit(f"expected one of {', '.join(WHAT)}, found {argv[0] if argv else 'nothing'}\n\n{__doc__}")
    try:
        WHAT[argv[0]].main(argv[1:])
    except (UserError, OSError) as error:
        print(f"speed.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
