"""What a companion loss is: the interface behind ``--aug``, with its settings, its seeds and its state."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import DataError
from ...models import reference_tensor
from ...utils import broadcast, derive_seed, draw_seed, nn, rank, settings_from, torch

if TYPE_CHECKING:
    from typing_extensions import Self

_CALL = 2  # what the seeds of calls are derived with; the noise companions have other uses beside it


class Augmentation:
    """A companion loss: what ``--aug NAME`` adds to the clean loss, or puts in its place.

    In a training loop it takes one line, whatever the method::

        companion = Trades(model)
        for input, target in loader:
            loss = loss_fn(model(input), target) + companion.loss(input, target, loss_fn)

    A subclass says in ``Settings`` what can be set, and computes :meth:`loss`. It runs the unwrapped module, never
    DDP's wrapper, whose gradients one joint backward averages; where it replaces the clean loss, ``train`` averages
    them itself. Whatever it draws comes from :meth:`next_seed`, so that a resumed run draws the same.

    Args:
        model: the model being trained, also in DDP or compiled.
        batches: the training loader, or a list of batches, for the companions that need images of their own.
        config: an instance of ``Settings``; its defaults if None.
        generator: source of all seeds (rank 0's is used); by default one with seed 0.

    Attributes:
        name: the word behind ``--aug``; set by ``register_augmentation``.
        Settings: a frozen dataclass whose fields are flags (``utils.setting``), or None.
        prefix: of these flags; by default the name and a hyphen.
        uses_output: whether :meth:`loss` takes ``output``, the model's clean output with its graph.
        loss_name: of the column of ``summary.csv`` that holds the mean of :meth:`loss`.
        file_prefix: of the files of :meth:`write`; empty unless companions are joined.
    """

    name: ClassVar[str] = ""
    Settings: ClassVar[type | None] = None
    prefix: ClassVar[str] = ""
    uses_output: bool = False
    loss_name: ClassVar[str] = "companion_loss"

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        config: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.batches = model, batches
        self.config = self.Settings() if config is None and self.Settings is not None else config
        self.file_prefix = ""
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self._seed = int(broadcast(torch.tensor(draw_seed(generator), device=reference_tensor(model).device)))
        self._calls = 0

    @classmethod
    def config_from(cls, args: argparse.Namespace) -> Any:
        """The settings in parsed flags; None where there are none.

        Raises:
            OptionError: one is out of its range.
        """
        return None if cls.Settings is None else cls.Settings(**settings_from(args, cls.Settings, cls.prefix)[0])

    @classmethod
    def from_args(
        cls,
        args: argparse.Namespace,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        generator: torch.Generator | None = None,
        on_step: Any = None,
    ) -> Self:
        """The companion that parsed flags ask for; ``on_step`` is for those that work long between steps."""
        return cls(model, batches, cls.config_from(args), generator=generator)

    @classmethod
    def check(cls, args: argparse.Namespace) -> None:
        """Raise OptionError for flags that are out of range or exclude each other, before anything is built."""
        cls.config_from(args)

    @classmethod
    def replaces(cls, config: Any) -> bool:
        """Whether :meth:`loss` stands in place of the clean loss, with these settings."""
        return False

    @classmethod
    def cost(cls, config: Any) -> float:
        """Cost of :meth:`loss` for an image, in forwards: a backward to the weights counts 2, to the input alone 1.

        Beside it, a plain update costs 3; where a companion replaces the clean loss, the 3 are saved.
        """
        raise NotImplementedError

    @classmethod
    def output_cost(cls, config: Any) -> float:
        """What it costs more, as :meth:`cost` counts, if another replaces the clean loss and leaves no ``output``."""
        return 0.0

    @classmethod
    def synthesis_cost(cls, config: Any) -> float:
        """Cost, at most, of what precedes the first of every ``--ns-interval`` updates, as :meth:`cost` counts."""
        return 0.0

    @classmethod
    def costs_from(cls, args: argparse.Namespace) -> tuple[float, float, float]:
        """:meth:`cost`, :meth:`output_cost` and :meth:`synthesis_cost` with parsed flags."""
        config = cls.config_from(args)
        return cls.cost(config), cls.output_cost(config), cls.synthesis_cost(config)

    @property
    def replaces_clean(self) -> bool:
        """Whether :meth:`loss` stands in place of the clean loss, which the loop then need not compute."""
        return self.replaces(self.config)

    @property
    def due(self) -> bool:
        """Whether the next step begins with something long, before which a state is worth saving."""
        return False

    @property
    def numbers(self) -> dict[str, float]:
        """What trackers and ``summary.csv`` show besides the loss; the same keys at all times once there are any."""
        return {}

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
    ) -> torch.Tensor:
        """The companion loss, to be added to the clean loss unless :attr:`replaces_clean`.

        Runs in the model's current mode and under the caller's autocast.

        Args:
            input: (B, C, H, W), what the model gets for the clean loss, after mixup: pixels in [0, 1] where the
                normalisation is inside the model.
            target: labels (B,) or soft targets (B, K), as ``loss_fn`` expects.
            loss_fn: the loop's loss function.
            new_step: False for a further loss in the same step.
        """
        raise NotImplementedError

    def next_seed(self) -> int:
        """The seed of this call of :meth:`loss` on this rank; to be asked for once a call."""
        seed = derive_seed(derive_seed(self._seed, _CALL, self._calls), rank())
        self._calls += 1
        return seed

    def rewind(self) -> None:
        """Let the next call draw what the latest drew, as the second pass of sharpness-aware minimisation needs."""
        self._calls -= 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs for training to go on as if never interrupted."""
        return {"seed": self._seed, "calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; batches and settings must be the same."""
        self._seed, self._calls = state["seed"], state["calls"]

    def require_targets(self, input: torch.Tensor, target: torch.Tensor) -> None:
        """Raise DataError unless there is one of ``target`` for each of ``input``; for what needs labels itself."""
        if len(target) != len(input):
            raise DataError(
                f"{self.name}: expected a target for each image, found {len(target)} for {len(input)} images, as of "
                "several views. Give it the images of one view."
            )

    def write(self, folder: Path) -> None:
        """Write what belongs beside the weights in a run's folder, at each epoch's end."""
