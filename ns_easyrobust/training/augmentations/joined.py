"""Several companion losses at once: ``--aug nullspace,trades``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...utils import torch
from .base import Augmentation


class JoinedAugmentation(Augmentation):
    """The sum of companion losses, each with seeds of its own.

    Args:
        parts: the companions by name, of which at most one replaces the clean loss.

    Example:
        >>> parts = {"nullspace": NullspaceAugmentation(model, loader, NoiseConfig(max_steps=5))}
        >>> joined = JoinedAugmentation(parts)
        >>> float(joined.loss(images, labels, torch.nn.functional.cross_entropy)) > 0
        True
    """

    uses_output = True

    def __init__(self, parts: Mapping[str, Augmentation]) -> None:
        self.parts = dict(parts)
        for name in list(self.parts)[1:]:
            self.parts[name].file_prefix = f"{name}-"

    @property
    def replaces_clean(self) -> bool:
        """Whether one of them stands in place of the clean loss."""
        return any(part.replaces_clean for part in self.parts.values())

    @property
    def due(self) -> bool:
        """Whether the next step of one of them begins with something long."""
        return any(part.due for part in self.parts.values())

    @property
    def numbers(self) -> dict[str, float]:
        """Those of all parts, under the parts' names."""
        return {f"{name}_{key}": value for name, part in self.parts.items() for key, value in part.numbers.items()}

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
        output: Any = None,
    ) -> torch.Tensor:
        """The sum of the parts' losses; see :meth:`Augmentation.loss`."""
        losses = [part_loss(part, input, target, loss_fn, output, new_step) for part in self.parts.values()]
        return torch.stack([loss.float() for loss in losses]).sum()

    def rewind(self) -> None:
        """Let the next call of each part draw what the latest drew."""
        for part in self.parts.values():
            part.rewind()

    def state_dict(self) -> dict[str, Any]:
        """The parts' states by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def write(self, folder: Path) -> None:
        """Write each part's files; those of the second and later ones begin with the part's name."""
        for part in self.parts.values():
            part.write(folder)


def part_loss(
    augmentation: Augmentation,
    input: torch.Tensor,
    target: torch.Tensor,
    loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
    output: Any,
    new_step: bool = True,
) -> torch.Tensor:
    """``augmentation.loss(...)``, which is given the clean ``output`` if it uses that."""
    more = {"output": output} if augmentation.uses_output else {}
    return augmentation.loss(input, target, loss_fn, new_step=new_step, **more)
