"""What the numbers of ``transfer`` say, in sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .presentable import presentable
from .seed_statistics import Interval
from .sheet import format_count
from .transfer_table import FOUND_ON, HELD_OUT, TITLES, Place, TransferTable, shown

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
        if kind == "encoder":
            notes.append(_under_eps(protocol["eps"], table))
    return [note for note in notes if note] + _how(protocol, table)


def _on_images(table: TransferTable, kind: str) -> str:
    """Whether models' own noises do the same on other images."""
    influences, changed = [], []
    for images in table.images:
        places = [Place(kind, source, source, images) for source in table.sources]
        where = _WHERE.get(images, f"on {presentable(images)}")
        influences.append(f"{_range([table.influence(place).mean for place in places])} {where}")
        changed.append(f"{_percent([1 - table.agreement(place) for place in places])} {where}")
        if images != FOUND_ON and kind == "encoder":
            ratios = [table.beside(place, FOUND_ON) for place in places]
            if found := [ratio for ratio in ratios if ratio is not None]:
                low, high = min(ratio.low for ratio in found), max(ratio.high for ratio in found)
                ends = f"all intervals within [{low:.2g}, {high:.2g}]"
                influences[-1] += f" (times {_range([ratio.mean for ratio in found])}; {ends})"
    line = table.line(Place(kind, table.sources[0], table.sources[0], HELD_OUT))
    count = len(table.sources)
    of_each = f"{_noises(kind, len(line['influences']))} of {'each model' if count > 1 else 'the model'}"
    ranges = f"; ranges are over {count} models" if count > 1 else ""
    return (
        f"{TITLES[kind]}, on its own model: influence {'; '.join(influences)}. Predictions that change: "
        f"{'; '.join(changed)} (n={line['n']} held-out images, {of_each}{ranges})."
    )


def _under_eps(eps: float, table: TransferTable) -> str:
    """Whether the paper's criterion tells models apart."""
    places = [
        Place("encoder", source, target, HELD_OUT)
        for source in table.sources for target in table.targets if source != target
    ]  # fmt: skip
    if not places:
        return ""
    passing = [place for place in places if table.influence(place).mean < eps]
    text = (
        f"By the paper's own criterion, influence under eps ({eps:g}), encoder noise is nullspace noise of the other "
        f"model too at {len(passing)} of {len(places)} places off the diagonal."
    )
    shares = {place: found.mean for place in passing if (found := table.relative(place))}
    if shares:
        most = max(shares, key=shares.__getitem__)
        there, home = (table.influence(place, "random") for place in (most, most._replace(target=most.source)))
        text += (
            f" Of these the share is the largest for noise of {presentable(most.source)} on "
            f"{presentable(most.target)}: influence {shown(table.influence(most))}, where random noise of that "
            f"norm has {shown(there)}, and {shown(home)} on {presentable(most.source)}."
        )
    return text


def _on_models(table: TransferTable, kind: str) -> str:
    """Whether they do the same on other models, in shares of what their permutations do there."""
    own: list[float] = []
    others: dict[str, Interval] = {}
    for source in table.sources:
        for target in table.targets:
            relative = table.relative(Place(kind, source, target, HELD_OUT))
            share = relative or Interval(0.0, 0.0, 0.0)
            if source == target:
                own.append(share.mean)
            else:
                others[f"of {presentable(source)} on {presentable(target)}"] = share
    if not others or not own:
        return ""
    least, most = (choose(others, key=others.__getitem__) for choose in (min, max))
    ends = f"from {shown(others[least])} ({least}) to {shown(others[most])} ({most})"
    return (
        f"{TITLES[kind]}, on held-out images, as a share of what its permutation does: {_range(own)} on its own "
        f"model; on others {ends if len(others) > 1 else f'{shown(others[least])} ({least})'}."
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _percent(shares: Sequence[float]) -> str:
    low, high = f"{100 * min(shares):.1f}%", f"{100 * max(shares):.1f}%"
    return low if low == high else f"{low} to {high}"


def _noises(kind: str, count: int) -> str:
    return "one noise an image" if kind == "valid" else format_count(count, "noise")


def _how(protocol: Mapping[str, Any], table: TransferTable) -> list[str]:
    readers = [f"{reader} of {presentable(label)}" for label, reader in protocol["uncentred"].items()]
    centred = (
        f"not centred, and its controls neither, as {', '.join(readers)} reads a token's mean"
        if readers
        else "centred per token, as are its controls"
    )
    sets = "; ".join(f"{name}: {origin}" for name, origin in protocol["sets"].items())
    kinds = {
        "encoder": f"encoder: found by the solver {protocol['solver']} (eps {protocol['eps']:g}, at most "
        f"{protocol['max_steps']} steps) on the images '{FOUND_ON}', added to the patch embedding's output; "
        f"{centred}.",
        "patch": f"patch: a sample of Eq. 2 of rms {protocol['rms']:g}, one for all images, as floats, "
        "unclipped; its permutation is one within each patch.",
        "valid": f"valid: large noise of the nullspace that keeps an image's pixels in [0, 1], on at most "
        f"{protocol['valid_images']} images of each folder; its permutation, within each patch, keeps them there too.",
    }
    return [
        f"Influence: mse_probability, on {presentable(protocol['architecture'])} ({protocol['preprocessing']}). "
        "Intervals: 95%. Noises and images are crossed: the squares of the half-widths over noises (Student's t) and "
        "over images (normal) are summed, which is rather too wide; of ratios likewise, of the logarithm. A share is "
        f"the geometric mean over noises. random: Gaussian, of the same norm. Images: {sets}.",
        " ".join(kinds[kind] for kind in table.kinds),
    ]
