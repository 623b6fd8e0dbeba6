"""Table 1 of models: nullspace dimensions with and without the all-ones direction, its check, and the spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .dimensions_picture import dimensions_picture, row_names
from .figure_report import FigureReport
from .presentable import presentable
from .sheet import Cell, Sheet, format_count

Line = Mapping[str, Any]
_COLUMNS = (
    "model", "timm", "weights", "patch_size", "input_dim", "embed_dim", "nullity", "published", "nullity_with_all_ones",
    "smallest_kept", "largest_dropped", "rtol",
)  # fmt: skip
_CHECKED = (
    "ignores_tokens", "ignores_equal", "ignores_pixels", "tokens", "equal", "random", "pixels", "random_pixels",
    "pixel_norm", "norm", "largest", "reader",
)  # fmt: skip
_HEADINGS = (
    ("weights", ""), ("patch", "C*p*p"), ("embedding", "D"), ("nullspace", "of W"), ("Table 1", "of the paper"),
    ("nullspace", "with all-ones"), ("all-ones ignored", "on each token"), ("logits moved by", "all-ones on tokens"),
    ("logits moved by", "random, same norm"), ("logits moved by", "pixels that make all-ones"),
    ("smallest kept", "of largest"), ("largest dropped", "of largest"),
)  # fmt: skip


def dimensions_report(protocol: Mapping[str, Any], lines: Sequence[Line]) -> FigureReport:
    """The report of the experiment ``dimensions``.

    Args:
        protocol: its ``space``, ``rtol``, ``norm``, ``images`` and ``seed``.
        lines: one a model, in the order of the rows.
    """
    sheet = Sheet(_HEADINGS, list(zip(row_names(lines), map(_cells, lines), strict=True)))
    rows: list[list[object]] = [[*_COLUMNS, *_CHECKED, "unknown"]]
    rows += [
        [line[name] for name in _COLUMNS]
        + [(line["check"] or {}).get(name) for name in _CHECKED]
        + [presentable(line["unknown"]) if line["unknown"] else None]
        for line in lines
    ]
    return FigureReport(
        title="Exact nullspaces of patch embeddings, and what LayerNorms add to them",
        sheets=[("", sheet)],
        notes=[*_protocol_notes(protocol), *_findings(protocol, lines)],
        rows=rows,
        draw=partial(dimensions_picture, protocol, lines),
    )


def in_range(line: Line) -> bool:
    """Whether all-ones is in W's range."""
    return bool(line["nullity_with_all_ones"] > line["nullity"])


def _cells(line: Line) -> list[Cell]:
    check = line["check"]
    numbers = [line["weights"], line["input_dim"], line["embed_dim"], line["nullity"], line["published"]]
    cells = [Cell("-" if value is None else presentable(str(value))) for value in numbers]
    cells += [Cell(_with_all_ones(line)), Cell(_verdict(line), is_number=False)]
    measured = (check and check["tokens"], check and check["random"], check and check["pixels"])
    cells += [Cell("-" if value is None else f"{value:.1e}") for value in measured]
    ends = (line["smallest_kept"], line["largest_dropped"])
    return [*cells, *(Cell("-" if value is None else f"{value:.2e}") for value in ends)]


def _with_all_ones(line: Line) -> str:
    if not in_range(line):
        return str(line["nullity"])
    if line["check"] is None:
        return "not known"
    return str(line["nullity_with_all_ones"]) if line["check"]["ignores_pixels"] else "no"


def _verdict(line: Line) -> str:
    check = line["check"]
    if check is None:
        return "not known"
    if check["ignores_tokens"]:
        return "yes"
    return f"{'if equal on all' if check['ignores_equal'] else 'no'}: {_reason(line)}"


def _reason(line: Line) -> str:
    return presentable(line["check"]["reader"] or "as measured")


def _protocol_notes(protocol: Mapping[str, Any]) -> list[str]:
    cut = "max(C*p*p, D) times float epsilon" if protocol["rtol"] is None else f"{protocol['rtol']:g}"
    return [
        "nullspace of W: dimension of the exact nullspace of the linear map W of one patch (section 3.1 and Table 1 of "
        f"arXiv:2403.10476), {protocol['space']} inputs; singular values up to {cut} of the largest count as zero.",
        "nullspace with all-ones: of P W, where P takes away the mean over the features, as each LayerNorm of a pre-LN "
        "transformer does; one more than W's where all-ones is in W's range. no: the model does not ignore it.",
        f"logits moved by: the largest change of a logit in float64, over {format_count(protocol['images'], 'image')} "
        f"of random pixels (seed {protocol['seed']}), by noise of norm {protocol['norm']:g} "
        "on all tokens of the image: all-ones of another size on each token, or a random direction; and by the least "
        "pixels that W turns into all-ones of that norm, which are not in W's nullspace (-: there are none).",
    ]


def _findings(protocol: Mapping[str, Any], lines: Sequence[Line]) -> list[str]:
    checked = [line for line in lines if line["check"]]
    holds = [line for line in checked if line["check"]["ignores_tokens"]]
    more = [line for line in checked if line["check"]["ignores_pixels"]]
    notes = []
    if holds:
        notes.append(
            f"{_count(holds)} of {format_count(_count(checked), 'model')} that were checked ignore all-ones of any "
            f"size on any token: at norm {protocol['norm']:g} their logits change by at most "
            f"{_most(holds, 'tokens'):.1e} of what a random direction of the same norm changes them by. That is one "
            "exact null dimension of the encoder for each patch token, which the paper's count of W's nullspace lacks."
        )
    if more:
        notes.append(
            f"In {format_count(_count(more), 'model')} all-ones is in W's range and ignored, so that a patch's exact "
            "nullspace is larger by one than W's: pixels which W does not map to zero change the logits by at most "
            f"{_most(more, 'pixels', 'random_pixels'):.1e} of what random pixels of that norm do."
        )
    trivial = [line for line in more if line["nullity"] == 0]
    if trivial:
        notes.append(
            f"W's nullspace is trivial and the model's is not, for {_listed(trivial, end=':')} Table 1 counts W's "
            "alone, which the paper calls a subset of the model's."
        )
    outside = [line for line in lines if not in_range(line)]
    if outside:
        notes.append(f"All-ones is not in W's range, which has fewer than D dimensions: {_listed(outside)}")
    equal = [line for line in checked if line["check"]["ignores_equal"] and line not in holds]
    if equal:
        notes.append(
            "Ignored only if it is of one size on all tokens, as a LayerNorm reads several of them together: "
            + _listed(equal, _reason)
        )
    fails = [line for line in checked if not line["check"]["ignores_equal"]]
    if fails:
        notes.append(f"Not ignored, as the part named reads tokens without a LayerNorm: {_listed(fails, _reason)}")
    unknown = [line for line in lines if not line["check"]]
    if unknown:
        notes.append(f"Not checked: {_listed(unknown, lambda line: presentable(line['unknown']).rstrip('.'))}")
    if any(line["weights"] == "random" for line in lines):
        notes.append(
            "random weights: nothing was learned, so that rank-nullity alone decides, nullspace of W = "
            "max(0, C*p*p - D); the paper's numbers are for trained weights, whose smallest singular values may be "
            "lost (its 2 for ViT-B/16): --pretrained takes timm's."
        )
    return notes


def _most(lines: Sequence[Line], name: str, control: str = "random") -> float:
    return float(max(line["check"][name] / line["check"][control] for line in lines))


def _count(lines: Sequence[Line]) -> int:
    """How many models they are of: one of both timms counts once."""
    return len({line["given"] for line in lines})


def _listed(lines: Sequence[Line], more: Any = None, end: str = ".") -> str:
    names = (presentable(line["model"]) + (f" ({more(line)})" if more else "") for line in lines)
    return ", ".join(dict.fromkeys(names)) + end  # a model under both timms once
