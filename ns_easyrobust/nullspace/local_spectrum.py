"""How many directions of the encoder's input a model notices: the spectrum of its softmax's mean squared Jacobian.

Noise v on the patch embedding's output moves the softmax of image x by J_x v to first order, so that its influence
(mean squared L2 distance) is v' M v with M = mean over images of J_x' J_x. A direction with eigenvalue lambda stays
under eps up to the norm sqrt(eps / lambda). M has at most n (K - 1) eigenvalues other than 0, for n images and K
classes, as the K outputs of a softmax sum to 1: all other directions are noticed by none of these n images to first
order, which says nothing of other images, nor of large noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..data import images_of
from ..errors import ModelError, OptionError
from ..models import encoder_noise, frozen, logits_of, reference_tensor, token_shape
from ..utils import nn, np, torch

_KEPT_BYTES = 2**30


class LocalSpectrum(NamedTuple):
    """The largest eigenvalues of M.

    Attributes:
        values: (k,) in descending order, none below 0.
        vectors: (k, *tokens), orthonormal, on the CPU.
        dimension: number of directions, tokens x features.
        rank: at most so many eigenvalues are not 0.
    """

    values: np.ndarray
    vectors: torch.Tensor
    dimension: int
    rank: int


class SoftmaxJacobian:
    """The softmax's Jacobian J_x (K, *tokens) with respect to noise on the patch embedding, at each of n images.

    Where all of them fit into memory (``kept`` bytes), they are computed once, by K backward passes; else each product
    runs the model, forwards and backwards. The model runs in eval mode and full precision; between the calls it is as
    before.

    Args:
        model: maps images (B, C, H, W) to logits (B, K).
        batches: images of each batch, as the model expects them.
        kept: bytes that all J_x may take.

    Raises:
        ModelError: no patch embedding, or only one class, so that no noise changes the softmax.
    """

    def __init__(self, model: nn.Module, batches: Sequence[torch.Tensor], kept: int = _KEPT_BYTES) -> None:
        self.model, self._like = model, reference_tensor(model)
        self.batches = [images_of(batch, self._like) for batch in batches]
        self.tokens = token_shape(model, self.batches[0])[1:]
        with self._ready(), torch.no_grad():
            self.classes = self._softmax(self.batches[0][:1], self._zero(1)).shape[1]
        if self.classes < 2:
            raise ModelError("local spectrum: expected two classes or more, found one, whose softmax is always 1.")
        self.n = sum(map(len, self.batches))
        self.dimension = int(np.prod(self.tokens))
        fits = self.n * self.classes * self.dimension * self._zero(1).element_size() <= kept
        self._rows = self._all_rows() if fits else None

    @contextmanager
    def _ready(self) -> Iterator[None]:
        from torch.nn.attention import SDPBackend, sdpa_kernel  # the only attention with all derivatives

        with (
            frozen(self.model),
            torch.autocast(self._like.device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield

    def _zero(self, size: int) -> torch.Tensor:
        dtype = torch.promote_types(self._like.dtype, torch.float32)
        return torch.zeros(size, *self.tokens, dtype=dtype, device=self._like.device)

    def _softmax(self, images: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with encoder_noise(self.model, value) as inner:
            return logits_of(inner(images), len(images)).softmax(-1)

    def _all_rows(self) -> torch.Tensor:
        """(n K, dimension), K rows an image."""
        from tqdm.auto import tqdm

        rows = []
        with self._ready(), torch.enable_grad():
            for images in tqdm(self.batches, desc="Jacobian", disable=None, leave=False):
                value = self._zero(len(images)).requires_grad_()
                outputs = self._softmax(images, value)
                found = [
                    torch.autograd.grad(outputs[:, k].sum(), value, retain_graph=True)[0] for k in range(self.classes)
                ]
                rows.append(torch.stack(found, 1).flatten(2).flatten(0, 1))
        return torch.cat(rows)

    def responses(self, value: torch.Tensor) -> torch.Tensor:
        """J_x v of each image, (n, K) in float64 on the CPU, for noise v (1, *tokens)."""
        value = value.to(self._zero(1))
        if self._rows is not None:
            return (self._rows @ value.flatten()).view(self.n, self.classes).double().cpu()
        with self._ready(), torch.no_grad():
            return torch.cat([self._forwards(images, value) for images in self.batches]).double().cpu()

    def _forwards(self, images: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(lambda noise: self._softmax(images, noise), (self._zero(1),), (value,))[1]

    def squared(self, value: torch.Tensor) -> torch.Tensor:
        """M v, (1, *tokens), for v (1, *tokens)."""
        value = value.to(self._zero(1))
        if self._rows is not None:
            return ((self._rows.T @ (self._rows @ value.flatten())) / self.n).view_as(value)
        total = self._zero(1)
        with self._ready():
            for images in self.batches:
                with torch.no_grad():
                    response = self._forwards(images, value)
                with torch.enable_grad():
                    noise = self._zero(1).requires_grad_()
                    total += torch.autograd.grad(self._softmax(images, noise), noise, response)[0]
        return total / self.n

    def influence(self, value: torch.Tensor) -> float:
        """v' M v, the quadratic prediction of mse_probability, for noise v (1, *tokens)."""
        return float(self.responses(value).square().sum(-1).mean())

    def spectrum(self, count: int, seed: int = 0) -> LocalSpectrum:
        """The ``count`` largest eigenvalues of M and their directions, by scipy's ``eigsh`` (Lanczos with restarts).

        Each token's all-ones direction, which layer norms ignore, is among the directions and has eigenvalue 0 where
        the model ignores it.

        Args:
            count: as many as M can have that are not 0, where that is less.
            seed: of the vector that the iteration begins with.

        Raises:
            OptionError: ``count`` is not positive.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        if count < 1:
            raise OptionError(f"local spectrum: expected one eigenvalue or more, found {count}.")
        rank = min(self.n * (self.classes - 1), self.dimension)

        def product(vector: np.ndarray) -> np.ndarray:
            return (
                self.squared(torch.from_numpy(np.ascontiguousarray(vector)).view(1, *self.tokens))
                .double()
                .cpu()
                .numpy()
                .ravel()
            )

        operator = LinearOperator((self.dimension,) * 2, matvec=product, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(self.dimension)
        values, vectors = eigsh(operator, k=min(count, rank, self.dimension - 1), which="LM", v0=start, tol=1e-5)
        order = np.argsort(-values)
        directions = torch.from_numpy(vectors.T[order].copy()).view(-1, *self.tokens).float()
        return LocalSpectrum(np.maximum(values[order], 0.0), directions, self.dimension, rank)
