"""Nullspace noise as a training augmentation: one line in a training loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ... import nullspace
from ...attacks import require_pixels
from ...errors import OptionError
from ...models import encoder_noise, mean_logits, output_of, unwrap
from ...nullspace import Noise, NoiseConfig
from ...utils import fork_rng, nn, torch
from .noise_use import NoiseUse, check_use, check_valid_pixels, random_combinations, use_from, with_pixel_noise
from .pixels import refuse_erasing_outside
from .registry import register_augmentation
from .renewed_noise import RenewedNoise, check_renewal
from .trades import divergence

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...nullspace import OnStep


@register_augmentation("nullspace")
class NullspaceAugmentation(RenewedNoise):
    """The companion loss of Algorithm 1, lines 17-19: the loss under nullspace noise on the encoder's input.

    In a training loop it takes one line::

        ns = NullspaceAugmentation(model, loader)
        for input, target in loader:
            loss = loss_fn(model(input), target) + ns.loss(input, target, loss_fn)

    Call backward once, on the sum: under DDP, a backward of this loss alone would not average
    the gradients over ranks. Construction and synthesis leave the loop's data, its random numbers
    and the model as they were; the noisy forward draws its dropout from separate seeds.

    Args:
        model: the model being trained: a transformer, alone or in a Sequential with its normalisation,
            also in DDP or compiled.
        batches: the training loader, or a list of batches. A loader is never iterated: a private
            copy is built from its dataset (the items that a SubsetRandomSampler can reach), collate
            function, batch size and workers, and up to 256 images (at most a tenth) are kept
            out of synthesis to measure each noise's influence on. Under several ranks, a loader's
            dataset is split among them; a list must already be this rank's share.
        config: settings of the synthesis; the paper's by default.
        interval: steps that share one noise (S of App. C); a step is a call of :meth:`loss`.
        warm_start: start each synthesis from the previous result: faster, but successive noises are similar.
        held_out: batches to measure influence on, instead of images kept out of synthesis.
        generator: source of all seeds (rank 0's is used); by default one with seed 0.
        on_step: called with each synthesis :class:`~ns_easyrobust.nullspace.noise.Step`, for progress bars.
        use: what is done with the noise: by default, all images share it, and the loss is the loop's.

    Attributes:
        draw_fresh: how ``use.fresh`` draws so many noises from the newest, (1, *tokens) to (count, *tokens); None
            where the direction matters, so that it is refused.

    Raises:
        ModelError: the model has no single patch embedding, none that ``use.valid_pixels`` needs, or no blocks where
            ``config.block`` names one.
        DataError: the loader cannot be copied.
        OptionError: ``interval`` < 1, ``warm_start`` with the random baseline, a block that the model does not have, or
            a ``use`` without meaning here.

    Example:
        >>> ns = NullspaceAugmentation(model, loader, NoiseConfig(max_steps=5), interval=2)
        >>> loss_fn = torch.nn.functional.cross_entropy
        >>> for input, target in loader:
        ...     loss = loss_fn(model(input), target) + ns.loss(input, target, loss_fn)
        >>> [entry["step"] for entry in ns.history]  # the noise was renewed before these
        [0, 2, 4]
    """

    loss_name = "noisy_loss"
    draw_fresh: ClassVar[Any] = None

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        config: NoiseConfig | None = None,
        *,
        interval: int = 40,
        warm_start: bool = False,
        held_out: Iterable[Any] | None = None,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
        use: NoiseUse | None = None,
    ) -> None:
        use = use or NoiseUse()
        self._check_use(use, config or NoiseConfig(), warm_start)
        super().__init__(
            model,
            batches,
            config,
            interval=interval,
            warm_start=warm_start,
            held_out=held_out,
            generator=generator,
            on_step=on_step,
            eps_growth=use.eps_growth,
        )
        if use.valid_pixels:
            check_valid_pixels(model)
        self.use = use
        self.uses_output = use.loss == "kl"
        self._older: list[torch.Tensor] = []  # noises of the bank before the newest, oldest first
        self._inverse: torch.Tensor | None = None  # of the patch projection when the newest was made
        self._on_device: tuple[torch.Tensor, torch.Tensor | None] | None = None  # the noises' values, and the inverse

    @classmethod
    def from_args(
        cls,
        args: argparse.Namespace,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Self:
        """The companion that parsed flags ask for; ``on_step`` is called with each step of a synthesis."""
        options: dict[str, Any] = {"interval": args.ns_interval, "warm_start": args.ns_warm_start}
        options |= {"use": use_from(args, cls.prefix), "generator": generator, "on_step": on_step}
        return cls(model, batches, cls.config_from(args), **options)

    @classmethod
    def check(cls, args: argparse.Namespace) -> None:
        """Raise OptionError for flags that are out of range or exclude each other, before anything is built."""
        config, use = cls.config_from(args), use_from(args, cls.prefix)
        check_renewal(args.ns_interval, args.ns_warm_start, cls.solver or config.solver)
        cls._check_use(use, config, args.ns_warm_start)
        if use.valid_pixels:
            refuse_erasing_outside(args, "to which valid_pixels clips")

    @classmethod
    def _check_use(cls, use: NoiseUse, config: NoiseConfig, warm_start: bool) -> None:
        solver = cls.solver or config.solver
        check_use(use, cls.name, draws_fresh=cls.draw_fresh is not None, warm_start=warm_start, solver=solver)
        if use.valid_pixels and config.block >= 0:
            raise OptionError(
                f"noise valid_pixels: expected noise of the patch embedding, found one of block {config.block}, which "
                "no pixels give. Leave one of them out."
            )

    @classmethod
    def cost(cls, config: NoiseConfig) -> float:
        """The noisy branch's 3."""
        return 3.0

    @classmethod
    def output_cost(cls, config: NoiseConfig, use: NoiseUse | None = None) -> float:
        """1 with the loss kl, for the clean predictions, which are constants."""
        return 1.0 if use is not None and use.loss == "kl" else 0.0

    @classmethod
    def synthesis_cost(cls, config: NoiseConfig) -> float:
        """3 a step of the search, at most: the clean forward, the noisy one, and its backward to the noise.

        (Where the clean logits are kept, or the search stops earlier, it costs less. The random baseline has none.
        The measurements on held-out images are not counted.)
        """
        return 0.0 if (cls.solver or config.solver) == "random" else 3.0 * config.max_steps

    @classmethod
    def costs_from(cls, args: argparse.Namespace) -> tuple[float, float, float]:
        config = cls.config_from(args)
        return cls.cost(config), cls.output_cost(config, use_from(args, cls.prefix)), cls.synthesis_cost(config)

    def refresh(self) -> Noise:
        """Synthesize a new noise for the model as it is now, and append its numbers to ``history``.

        Raises:
            NoiseError: memory is full, or the synthesis failed.
        """
        previous = self.noise
        noise = super().refresh()
        if previous is not None and self.use.bank > 1:
            self._older = [*self._older, previous.value][1 - self.use.bank :]
        if self.use.valid_pixels:
            self._inverse = nullspace.patch_pseudo_inverse(self.model, space="pixel").to(noise.value.dtype)
        self._on_device = None
        return noise

    def loss(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        new_step: bool = True,
        output: Any = None,
    ) -> torch.Tensor:
        """The companion loss, which is the loss of ``input`` under the noise, to be added to the clean loss (line 19).

        Runs in the model's current mode and under the caller's autocast. A new noise is
        synthesized at the first step and after every ``interval`` steps.

        Args:
            input: (B, C, H, W), what the model gets for the clean loss, after mixup; with ``use.valid_pixels`` in
                [0, 1].
            target: labels (B,) or soft targets (B, K), as ``loss_fn`` expects.
            loss_fn: the loop's loss function.
            new_step: False for a further loss in the same step, which does not count towards ``interval``.
            output: what the model returned for ``input`` in the clean loss, for the loss kl; None: computed here.

        Returns:
            What ``loss_fn`` returns for the noisy outputs; with the loss kl, the mean divergence.

        Raises:
            DataError: ``use.valid_pixels``, and ``input`` is outside [0, 1].
        """
        if new_step or self.noise is None:
            if self.due:
                self.refresh()
            self._steps += 1
        with fork_rng(self.next_seed(), input.device):
            noisy = self._noisy_output(input)
            if self.use.loss == "ce":
                return loss_fn(noisy, target)
            if output is None:
                with torch.no_grad():  # after the noisy forward: autocast keeps the weights that it has cast first
                    output = output_of(unwrap(self.model), input)
        clean = mean_logits(output, len(input)).detach()
        return divergence(clean, mean_logits(noisy, len(input))).mean()

    def _noisy_output(self, input: torch.Tensor) -> Any:
        """What the model returns for ``input`` under the noise; draws from the global generators."""
        with torch.autocast(input.device.type, enabled=False):
            values, inverse = self._values_and_inverse()
            value = self._drawn(values, len(input))
            if inverse is not None:
                require_pixels(input, "valid_pixels")
                patch_size = nullspace.find_projection(self.model).kernel_size[0]
                input = with_pixel_noise(input, value, inverse, patch_size)
        if inverse is not None:
            return output_of(unwrap(self.model), input)
        with encoder_noise(self.model, value, block=self.config.block) as inner:
            return output_of(inner, input)

    def _values_and_inverse(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(n, *tokens), the newest noise last, and the projection's inverse, on the model's device."""
        assert self.noise is not None
        if self._on_device is None:
            values = torch.cat([*self._older, self.noise.value]).to(self._device())
            self._on_device = values, None if self._inverse is None else self._inverse.to(values.device)
        return self._on_device

    def _drawn(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """The noise of all images, (1, *tokens), or of each, (count, *tokens), drawn from the global generators."""
        if self.use.fresh:
            drawn: torch.Tensor = self.draw_fresh(values, count)
            return drawn
        return random_combinations(values, count) if self.use.bank else values

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs for training to go on as if never interrupted."""
        return super().state_dict() | {"older": list(self._older), "inverse": self._inverse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; batches and settings must be the same."""
        super().load_state_dict(state)
        self._older, self._inverse = list(state.get("older", [])), state.get("inverse")  # earlier versions have none
        self._on_device = None
