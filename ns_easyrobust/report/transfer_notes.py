"""What the numbers of ``transfer`` say, in sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .presentable import presentable
from .transfer_table import FOUND_ON, HELD_OUT, TITLES, Place, TransferTable, shown

_WHERE = {FOUND_ON: "on the images that it was found on", HELD_OUT: "on held-out ones"}


def transfer_notes(protocol: Mapping[str, Any], table: TransferTable) -> list[str]:
    """Findings on images, findings on models, and how it was measured."""
    notes = []
    for kind in table.kinds:
        for source in table.sources:
            notes += [_on_images(table, kind, source), _on_models(table, kind, source)]
    return [note for note in notes if note] + _how(protocol, table)


def _on_images(table: TransferTable, kind: str, source: str) -> str:
    """Whether a model's own noise does the same on other images."""
    own = {images: Place(kind, source, source, images) for images in table.images}
    parts = []
    for images, place in own.items():
        text = f"{shown(table.influence(place))} {_WHERE.get(images, f'on {presentable(images)}')}"
        ratio = table.ratio(place, own[FOUND_ON]) if images != FOUND_ON and kind == "encoder" else None
        parts.append(text + (f" (times {shown(ratio)})" if ratio else ""))
    n, count = (table.line(own[HELD_OUT])[name] for name in ("n", "influences"))
    return (
        f"{TITLES[kind]}, noise of '{presentable(source)}' on itself: influence {'; '.join(parts)} "
        f"(n={n} images, {_noises(len(count))})."
    )


def _on_models(table: TransferTable, kind: str, source: str) -> str:
    """Whether it does the same on other models, in shares of what its permutation does there."""
    own = Place(kind, source, source, HELD_OUT)
    parts = []
    for target in table.targets:
        place = own._replace(target=target)
        relative = table.relative(place)
        what = f"{shown(relative)} of its permutation's" if relative else "none at all"
        parts.append(f"{what} on '{presentable(target)}'")
    if len(parts) < 2:
        return ""
    return f"{TITLES[kind]}, noise of '{presentable(source)}', influence on held-out images: {'; '.join(parts)}."


def _noises(count: int) -> str:
    return "one noise an image" if count == 1 else f"{count} noises"


def _how(protocol: Mapping[str, Any], table: TransferTable) -> list[str]:
    sets = "; ".join(f"{name}: {origin}" for name, origin in protocol["sets"].items())
    kinds = {
        "encoder": f"encoder: found by the solver {protocol['solver']} (eps {protocol['eps']:g}, at most "
        f"{protocol['max_steps']} steps) on the images '{FOUND_ON}', added to the patch embedding's output; centred "
        "per token, as are its controls.",
        "patch": f"patch: a sample of Eq. 2 of rms {protocol['rms']:g}, one for all images, as floats, "
        "unclipped; its permutation is one within each patch.",
        "valid": f"valid: the largest noise of the nullspace that keeps an image's pixels in [0, 1], on at most "
        f"{protocol['valid_images']} images of each folder; its permutation, within each patch, keeps them there too.",
    }
    return [
        f"Influence: mse_probability, on {presentable(protocol['architecture'])} ({protocol['preprocessing']}). "
        "Intervals: 95%, the wider of Student's t over noises and the normal one over images; of ratios, Student's t "
        f"over noises of the logarithm, on the same images. random: Gaussian, of the same norm. Images: {sets}.",
        " ".join(kinds[kind] for kind in table.kinds),
    ]
