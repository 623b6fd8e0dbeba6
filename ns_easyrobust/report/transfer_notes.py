"""What the numbers of ``transfer`` say, in sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .presentable import presentable
from .transfer_table import FOUND_ON, HELD_OUT, TITLES, Place, TransferTable

_WHERE = {FOUND_ON: "on the images that it was found on", HELD_OUT: "on held-out ones"}


def transfer_notes(protocol: Mapping[str, Any], table: TransferTable) -> list[str]:
    """How tables are read, findings on images and on models, and how it was measured."""
    reading = (
        "Influence of the noise of the model at the left, as mse_probability, and in brackets its share of what its "
        "permutation does there, and how many predictions stay. The CSV has the controls, each noise, and all models "
        "on all images."
    )
    notes = [reading]
    for kind in table.kinds:
        notes += [_on_images(table, kind), _on_models(table, kind)]
    return [note for note in notes if note] + _how(protocol, table)


def _on_images(table: TransferTable, kind: str) -> str:
    """Whether models' own noises do the same on other images."""
    parts = []
    for images in table.images:
        places = [Place(kind, source, source, images) for source in table.sources]
        where = _WHERE.get(images, f"on {presentable(images)}")
        parts.append(f"{_range([table.influence(place).mean for place in places])} {where}")
        if images != FOUND_ON and kind == "encoder":
            ratios = [table.ratio(place, place._replace(images=FOUND_ON)) for place in places]
            if found := [ratio.mean for ratio in ratios if ratio is not None]:
                parts[-1] += f" (times {_range(found)})"
    line = table.line(Place(kind, table.sources[0], table.sources[0], HELD_OUT))
    return (
        f"{TITLES[kind]}, on the model that it is of: influence {'; '.join(parts)} (n={line['n']} images, "
        f"{_noises(len(line['influences']))} of each model; the range is over {len(table.sources)} models)."
    )


def _on_models(table: TransferTable, kind: str) -> str:
    """Whether they do the same on other models, in shares of what their permutations do there."""
    own, others = [], {}
    for source in table.sources:
        for target in table.targets:
            relative = table.relative(Place(kind, source, target, HELD_OUT))
            share = relative.mean if relative else 0.0
            if source == target:
                own.append(share)
            else:
                others[f"of {presentable(source)} on {presentable(target)}"] = share
    if not others or not own:
        return ""
    least, most = (choose(others, key=others.__getitem__) for choose in (min, max))
    return (
        f"{TITLES[kind]}, on held-out images, as a share of what its permutation does: {_range(own)} on the model that "
        f"it is of; on others from {others[least]:.2g} ({least}) to {others[most]:.2g} ({most})."
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


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
