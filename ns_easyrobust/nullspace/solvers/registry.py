"""Registry of the solvers that ``--ns-solver`` can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...utils import Registry, torch

if TYPE_CHECKING:
    from ..config import NoiseConfig
    from ..noise import Step
    from ..objective import NoiseObjective, OnStep


class SolverResult(NamedTuple):
    """Result of a solver: the noise, every test, the number of updates, and whether it stopped under eps."""

    value: torch.Tensor
    history: list[Step]
    updates: int
    stopped: bool


Solve = Callable[["NoiseObjective", "torch.Tensor", "NoiseConfig", "OnStep"], SolverResult]


class Solver(NamedTuple):
    """A way of finding noise.

    Attributes:
        solve: called with the objective, the start noise (1, *tokens), the settings, and what is to be called
            with each :class:`Step`.
        gaussian: whether a random start is standard normal; otherwise it is uniform in (-limit, limit).
        pool: batches that are kept with their clean logits and used again, where ``NoiseConfig.pool`` is -1.
    """

    solve: Solve
    gaussian: bool
    pool: int


_SOLVERS: Registry[Solver] = Registry("solver", __package__)


def register_solver(name: str, *, gaussian: bool = False, pool: int = 0) -> Callable[[Solve], Solve]:
    """Decorator: make a function available as ``--ns-solver NAME``; the arguments are those of :class:`Solver`.

    Raises:
        OptionError: the name is taken.

    Example:
        >>> from ns_easyrobust.nullspace import SolverResult
        >>> @register_solver("zero")
        ... def zero(objective, start, config, on_step):
        ...     return SolverResult(torch.zeros_like(start), [], 0, True)
        >>> synthesize(model, loader, NoiseConfig(solver="zero")).norm
        0.0
    """
    _SOLVERS.require_name(name)

    def register(solve: Solve) -> Solve:
        _SOLVERS.add(name, Solver(solve, gaussian, pool), f"{solve.__module__}.{solve.__qualname__}")
        return solve

    return register


def known_solvers() -> dict[str, Solver]:
    """Every solver by name: those of this folder's files, and others that were registered."""
    return _SOLVERS.complete()
