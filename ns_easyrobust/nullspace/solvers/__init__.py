"""Solvers: ways of finding noise whose influence is small, each a file here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .registry import Solver, SolverResult, known_solvers, register_solver
    from .sphere_search import centred

__all__ = ["Solver", "SolverResult", "centred", "known_solvers", "register_solver"]

if not TYPE_CHECKING:
    from ...utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
