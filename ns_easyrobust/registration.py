"""``register()``: our evaluations where EasyRobust's users look for them."""

from __future__ import annotations

from . import evaluate

ADDED = (
    "evaluate_damagenet",
    "evaluate_imagenet_cw",
    "evaluate_imagenet_fgsm",
    "evaluate_imagenet_patchfool",
    "evaluate_imagenet_pgd",
)


def register() -> None:
    """Add the evaluations that EasyRobust lacks to ``easyrobust.benchmarks``; replace none of its own.

    ``from easyrobust.benchmarks import *`` gives them too. Calling it again changes nothing.
    """
    import easyrobust.benchmarks as host

    for name in ADDED:
        if not hasattr(host, name):
            setattr(host, name, getattr(evaluate, name))
    public = getattr(host, "__all__", None)
    if public is not None:
        host.__all__ = [*public, *(name for name in ADDED if name not in public)]
