"""What ``saliency`` has found, as sentences made of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .saliency_rows import ALIKE, PredictionRow, Rows, SaliencyKinds, SaliencyRow, near_one, nearer, title_of
from .statistics import wilson_interval

_MOVES = 1e-3  # share of a map's largest number: where rounding noise moves one more, four of seven digits are lost
_IN_COMMON = 0.5  # correlation of sources and targets from which on a map says little about its image
_MEANT = {
    SaliencyKinds.REORDERED: "the same change with its elements in another order within patches",
    SaliencyKinds.BLEND: "a blend towards the target that changes as much",
}
_READING = {
    "chefer": "a likely reason, read from its rules and not measured: they divide by sums of positive and negative "
    "numbers, which may be next to 0"
}  # of methods that may be ill-conditioned, why


def saliency_findings(methods: Sequence[str], rows: Rows, predictions: Mapping[str, PredictionRow]) -> list[str]:
    """Sentences: before rounding, in 8 bits, by as large a change, by the target, by rounding noise, and what is none.

    Args:
        rows, predictions: of :mod:`~.saliency_rows`.
    """
    kinds = SaliencyKinds
    return [
        _before_rounding(methods, rows, predictions[kinds.VALID].residual),
        _in_8_bits(methods, rows, predictions[kinds.ROUNDED]),
        _as_large(methods, rows),
        _target(methods, rows),
        _likeness(predictions),
        *_conditioning(methods, rows),
        *_undefined(methods, rows),
    ]


def _of(rows: Rows, method: str, kind: str, precision: str = "float32") -> SaliencyRow:
    return rows[method, SaliencyKinds.SOURCE, kind, precision]


def _before_rounding(methods: Sequence[str], rows: Rows, residual: float) -> str:
    kinds = SaliencyKinds
    has_float64 = any(key[3] == "float64" for key in rows)
    precision = "float64" if has_float64 else "float32"

    def moved(kind: str) -> str:
        return _listed({method: _moved(_of(rows, method, kind, precision)) for method in methods})

    text = (
        f"Before rounding to 8 bits, in {precision}, the farthest that a patch's number moves, as a share of its map's "
        f"largest: least squares, {moved(kinds.LEAST_SQUARES)}; valid pixels, which leave a residual of at most "
        f"{residual:.1e} of what the patch embedding sees, {moved(kinds.VALID)}."
    )
    if has_float64:
        return text
    return f"{text} The model does not run in float64, which would tell how much of it is rounding."


def _moved(row: SaliencyRow) -> str:
    return "none" if row.difference is None else f"{row.difference:.1e}"


def _in_8_bits(methods: Sequence[str], rows: Rows, prediction: PredictionRow) -> str:
    found = {}
    for method in methods:
        row = _of(rows, method, SaliencyKinds.ROUNDED)
        least = "" if row.least is None else f", the least by {near_one(row.least)}"
        found[method] = f"{_apart(row)}{least}"
    return (
        f"In 8 bits, pairs whose maps correlate by less than {ALIKE:g}: {_listed(found, '; ')}. The prediction stays "
        f"on {prediction.share_unchanged} of the pairs, and no probability moves by more than "
        f"{prediction.confidence:.1e}."
    )


def _apart(row: SaliencyRow) -> str:
    n = len(row.correlations)
    if not n:
        return "none"
    low, high = wilson_interval(row.apart, n)
    return f"{row.apart} of {n} [{low:.1f}, {high:.1f}]%"


def _as_large(methods: Sequence[str], rows: Rows) -> str:
    """Whether it is the direction of the change that leaves maps the same, and not its size."""
    sentences, not_shown = [], []
    for kind, meant in _MEANT.items():
        shares = {}
        for method in methods:
            one, other = (_of(rows, method, each) for each in (SaliencyKinds.ROUNDED, kind))
            more, n = nearer(one, other)
            low, high = wilson_interval(more, n) if n else (0.0, 100.0)
            shares[method] = f"{more} of {n} [{low:.1f}, {high:.1f}]%" if n else "none"
            if low <= 50:
                not_shown.append(f"{title_of(method)} ({kind})")
        sentences.append(f"than {meant}: {_listed(shares, '; ')}")
    text = f"Pairs whose source's map the image of 8 bits keeps better {', and '.join(sentences)}. "
    if not not_shown:
        return f"{text}So it is the direction of the change that keeps maps, not its size."
    return f"{text}That is not shown to be more than half of them by {_and(not_shown)}."


def _target(methods: Sequence[str], rows: Rows) -> str:
    """Whether the targets' maps are others, as the paper says."""
    kinds = SaliencyKinds
    found, high, near = {}, [], {}
    for method in methods:
        row = _of(rows, method, kinds.TARGET)
        mean, n = row.correlation, len(row.correlations)
        found[method] = "none" if mean is None else f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}] (n={n})"
        if mean is not None and mean.mean > _IN_COMMON:
            high.append(title_of(method))
        rounded = rows[method, kinds.TARGET, kinds.ROUNDED, "float32"].correlation
        near[method] = "none" if rounded is None else f"{rounded.mean:.3f} [{rounded.low:.3f}, {rounded.high:.3f}]"
    text = (
        f"Maps of source and target correlate by {_listed(found)} on average; those of the image of 8 bits and the "
        f"target by {_listed(near)}."
    )
    if high:
        text += (
            f" By {_and(high)} any two images have much of their maps in common (above {_IN_COMMON:g}), so that "
            "equal maps say less there."
        )
    return text


def _likeness(predictions: Mapping[str, PredictionRow]) -> str:
    kinds = SaliencyKinds
    before, after = (predictions[kind].from_target.mean for kind in (kinds.SOURCE, kinds.ROUNDED))
    return (
        f"How little they look like the target: sources lie {before:.3f} from their targets, transformed images "
        f"{after:.3f} ({100 * (1 - after / before):.1f}% nearer) and {predictions[kinds.ROUNDED].from_source.mean:.3f} "
        "from their sources (8 bits, root mean square of pixels from 0 to 1, mean over pairs)."
    )


def _conditioning(methods: Sequence[str], rows: Rows) -> list[str]:
    """Method by method, what noise as large as float32's rounding does to the source's own maps."""
    bad, good = [], {}
    for method in methods:
        row = _of(rows, method, SaliencyKinds.NOISE)
        if row.difference is None or row.difference <= _MOVES:
            good[method] = _moved(row)
            continue
        least = "" if row.least is None else f", the least by {near_one(row.least)}"
        text = (
            f"{title_of(method)} is ill-conditioned: of the source's pixels changed by rounding noise alone, a patch "
            f"moves by up to {row.difference:.1e} of its map's largest in float32, and {_apart(row)} of the pairs "
            f"correlate by less than {ALIKE:g}{least}"
        )
        if (method, SaliencyKinds.SOURCE, SaliencyKinds.NOISE, "float64") in rows:
            exact = _of(rows, method, SaliencyKinds.NOISE, "float64")
            text += f"; the same noise in float64: {_moved(exact)}, {_apart(exact)}"
        bad.append(f"{text}{f' ({_READING[method]})' if method in _READING else ''}.")
    if good:
        bad.append(f"By rounding noise alone, a patch moves by at most {_listed(good)} of its map's largest (float32).")
    return bad


def _undefined(methods: Sequence[str], rows: Rows) -> list[str]:
    counts = {
        method: max(row.constant for key, row in rows.items() if key[0] == method and key[3] == "float32")
        for method in methods
    }
    if not any(counts.values()):
        return []
    listed = _listed({method: str(count) for method, count in counts.items() if count})
    return [
        "Some maps are constant, mostly all 0 after a relu, and have no correlation; they are left out of it (pairs, "
        f"at most: {listed}), not of SSIM."
    ]


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _listed(found: Mapping[str, str], between: str = ", ") -> str:
    return between.join(f"{title_of(method)} {value}" for method, value in found.items())
