"""What the experiment ``attention`` measures of one layer: Proposition 1's conditions, and what heads see of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import nullspace
from ..errors import ModelError
from ..utils import derive_seed, torch

if TYPE_CHECKING:
    from torch import nn

    from ..models import HeadProjections

_CONTROL, _DIRECTIONS = range(2)  # what seeds are derived from, beside the layer's
SIZES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # norm of a token's noise over that of the normalised token


def require_heads(name: str, layers: Sequence[HeadProjections]) -> None:
    """Refuse a model with a head that has no row space to speak of, as one that was pruned.

    Raises:
        ModelError: Q_i K_i' (with the layer norm's gain or without it) or V_i of a head is 0.
    """
    for layer, projections in enumerate(layers):
        query, key, gain = projections.query, projections.key, projections.gain[:, None]
        shares = nullspace.symmetric_share(query, key) + nullspace.symmetric_share(gain * query, gain * key)
        for head, (share, value) in enumerate(zip(shares.tolist(), projections.value, strict=True)):
            if not (math.isfinite(share) and value.any()):
                raise ModelError(
                    f"{name}: expected heads whose Q K' and V are not 0, found layer {layer}, head {head}, where "
                    "one of them is. Give a checkpoint that is not pruned."
                )


def layer_measures(projections: HeadProjections, roundoff: float) -> dict[str, Any]:
    """All that Proposition 1 needs of a layer, as plain values; lists have a value a head.

    share, share_gained: symmetric share of Q_i K_i', without and with the layer norm's gain on both sides.
    share_others: mean over j != i of that of Q_i K_j'.
    inside, inside_least, inside_most: root mean square, smallest and largest cosine between the columns of V_i and K_i.
    inside_others: root mean square over all K_j, j != i. inside_tolerance: sine that rounding makes of 0.
    row, pair: largest cosine of a row of Q_m K_m' with the row space of Q_n K_n', and of any two such spaces.
    keys, common, same: smallest singular value over the largest of [K_1 ... K_h]; of all Q, K, V and of all Q, V, these
    with the gain and orthogonal to all-ones; ..._dimension and ..._tolerance beside them.
    condition_...: condition number of each Q_i, K_i, V_i; None of a singular one.
    """
    query, key, value, gain = projections.query, projections.key, projections.value, projections.gain[:, None]
    heads, pairs = len(query), [(i, j) for i in range(len(query)) for j in range(len(query)) if i != j]
    inside = nullspace.principal_cosines(value, key)
    found: dict[str, Any] = {
        "share": nullspace.symmetric_share(query, key).tolist(),
        "share_gained": nullspace.symmetric_share(gain * query, gain * key).tolist(),
        "share_tolerance": _share_tolerance(query, key, roundoff),
        "inside": inside.square().mean(-1).sqrt().tolist(),
        "inside_least": inside[:, -1].tolist(),
        "inside_most": inside[:, 0].tolist(),
    }
    if pairs:
        one, other = (torch.tensor(each) for each in zip(*pairs, strict=True))
        shares = nullspace.symmetric_share(query[one], key[other]).view(heads, -1)
        others = nullspace.principal_cosines(value[one], key[other]).square().view(heads, -1)
        found |= {"share_others": shares.mean(-1).tolist(), "inside_others": others.mean(-1).sqrt().tolist()}
        found["pair"] = float(nullspace.principal_cosines(key[one], key[other]).max())
        found["row"] = nullspace.nearest_row(query, key)
    for name, matrices in (("query", query), ("key", key), ("value", value)):
        values = torch.linalg.svdvals(matrices)
        found[f"condition_{name}"] = [
            each if math.isfinite(each) else None for each in (values[:, 0] / values[:, -1]).tolist()
        ]
    # Wedin's bound of the sine by which rounding turns the column spaces of V and K
    bounds = [values.norm(dim=(-1, -2)) / torch.linalg.svdvals(values)[:, -1] for values in (key, value)]
    found["inside_tolerance"] = (roundoff * sum(bounds)).clamp(max=1).tolist()  # a sine; K or V may be singular
    # [K_1 ... K_h] is square where d = h d_k: a direction that none of them sees is one that its columns lack.
    common, same = nullspace.head_invariant_directions(projections, roundoff)
    for name, least in (("keys", nullspace.least_seen(key, roundoff)), ("common", common), ("same", same)):
        found |= {name: least.ratio, f"{name}_dimension": least.dimension, f"{name}_tolerance": least.tolerance}
    return found


def _share_tolerance(query: torch.Tensor, key: torch.Tensor, roundoff: float) -> list[float]:
    """How far below 1 the share of a symmetric A may be by the rounding of Q and K."""
    energy = ((key.mT @ key) * (query.mT @ query)).sum((-1, -2))
    bound = 2 * roundoff * query.norm(dim=(-1, -2)) * key.norm(dim=(-1, -2)) / energy.sqrt()
    return bound.square().tolist()


def random_like(projections: HeadProjections, generator: torch.Generator) -> HeadProjections:
    """Independent Gaussian matrices of the same sizes, with the same gain."""
    drawn = (
        torch.randn(each.shape, generator=generator, dtype=each.dtype)
        for each in (projections.query, projections.key, projections.value)
    )
    return replace(projections, **dict(zip(("query", "key", "value"), drawn, strict=True)))


def control_measures(projections: HeadProjections, draws: int, seed: int) -> dict[str, list[float]]:
    """Those of :func:`layer_measures` that are compared, of ``draws`` random layers, a list of all heads and draws."""
    pooled: dict[str, list[float]] = {}
    for draw in range(draws):
        generator = torch.Generator().manual_seed(derive_seed(seed, _CONTROL, draw))
        measured = layer_measures(random_like(projections, generator), 0.0)
        for name, value in measured.items():
            if not name.endswith(("_dimension", "_tolerance")):
                pooled.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return pooled


def noise_changes(
    model: nn.Module,
    layer: int,
    tokens: Sequence[torch.Tensor],
    projections: HeadProjections,
    roundoff: float,
    draws: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """How much the heads' outputs change by noise along the direction that they see least, and by random ones.

    The noise is added to the layer norm's output: c_j w on token j, before the gain; "same": all c_j alike, and w least
    seen by all Q and V; "other": Gaussian c_j, one draw for all images, and w least seen by all Q, K and V.

    Args:
        tokens: of each batch (b, N, d), what this layer's attention reads of its b images.
        roundoff: of the stored weights.
        seed: of this layer's directions.

    Yields:
        ``noise``, ``size`` (of :data:`SIZES`), and the relative change (Frobenius norm, all heads and tokens):
        ``least``, its mean over images with the interval, and ``random``, the mean over images of each draw.
    """
    from .. import models, report

    common, same = nullspace.head_invariant_directions(projections, roundoff)
    generator = torch.Generator().manual_seed(derive_seed(seed, _DIRECTIONS))
    width, length = projections.width, tokens[0].shape[1]
    centred = torch.randn(draws, width, generator=generator, dtype=torch.float64)
    centred -= centred.mean(-1, keepdim=True)
    amounts = torch.randn(length, 1, generator=generator, dtype=torch.float64)
    amounts /= amounts.square().mean().sqrt()
    clean = [models.head_outputs(model, layer, batch) for batch in tokens]

    def change(direction: torch.Tensor, coefficients: torch.Tensor, size: float) -> list[float]:
        noise = size * math.sqrt(width) * coefficients * (direction / direction.norm() * projections.gain)
        found: list[float] = []
        for batch, before in zip(tokens, clean, strict=True):
            moved = models.head_outputs(model, layer, batch + noise.to(batch))
            found += ((moved - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).double().tolist()
        return found

    for name, least, coefficients in (("same", same, torch.ones_like(amounts)), ("other", common, amounts)):
        for size in SIZES:
            interval = report.interval_of_mean(change(least.direction, coefficients, size))
            random: Sequence[float] = [
                report.interval_of_mean(change(direction, coefficients, size)).mean for direction in centred
            ]
            yield {"noise": name, "size": size, "least": list(interval), "random": random, "n": sum(map(len, tokens))}


def layer_line(
    name: str,
    model: nn.Module,
    layer: int,
    projections: HeadProjections,
    tokens: Sequence[torch.Tensor],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """All that is measured of a layer of the model ``name``; arguments as of :func:`noise_changes`."""
    roundoff = nullspace.unit_roundoff(torch.stack((projections.query, projections.key, projections.value)))
    return {
        "model": name, "layer": layer, "width": projections.width, "head_width": projections.query.shape[-1],
        "roundoff": roundoff, **layer_measures(projections, roundoff),
        "control": control_measures(projections, draws, seed),
        "changes": list(noise_changes(model, layer, tokens, projections, roundoff, draws, seed)),
    }  # fmt: skip


def constructed_measures(heads: int, head_width: int, tokens: int, seed: int, without: int) -> dict[str, Any]:
    """The proof's W on a layer that meets the conditions, or all but one, beside a random W of the same norm.

    w is the direction that the rows of all Q_i K_i' see least; its coefficients are Gaussian, as are the tokens.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, without))
    layer = nullspace.constructed_layer(heads, head_width, generator, without)
    roundoff = torch.finfo(torch.float64).eps * layer.width
    least = nullspace.least_seen(layer.key, roundoff)
    inputs = torch.randn(tokens, layer.width, generator=generator, dtype=torch.float64)
    random = torch.randn(tokens, layer.width, generator=generator, dtype=torch.float64)
    proof = torch.randn(tokens, 1, generator=generator, dtype=torch.float64) * least.direction
    clean = nullspace.heads_of(layer, inputs)

    def change(noise: torch.Tensor) -> float:
        moved = nullspace.heads_of(layer, inputs + noise / noise.norm() * inputs.norm())
        return float((moved - clean).norm() / clean.norm())

    return {
        "without": without, "heads": heads, "width": layer.width, "tokens": tokens, "dimension": least.dimension,
        "share": float(nullspace.symmetric_share(layer.query, layer.key).min()),
        "inside": float(nullspace.principal_cosines(layer.value, layer.key).min()),
        "row": nullspace.nearest_row(layer.query, layer.key),
        "keys": least.ratio, "proof": change(proof), "random": change(random),
    }  # fmt: skip
