"""What is said of Proposition 1's conditions: met, excluded, or open because of rounding."""

from __future__ import annotations

from ns_easyrobust.report.attention_findings import findings, verdicts_of

CHANGE = {"size": 1.0, "least": [0.1, 0.1, 0.1], "random": [1.0], "n": 2}


def layer(number, share, inside_least, inside_tolerance, keys_dimension=0, dimension=0):
    heads = len(share)
    found = {"layer": number, "share": share, "share_gained": share, "share_others": share, "inside": share}
    found |= {"share_tolerance": [1e-4] * heads, "inside_least": inside_least, "inside_tolerance": inside_tolerance}
    for name in ("keys", "common", "same"):
        found |= {name: 0.1, f"{name}_tolerance": 0.01, f"{name}_dimension": dimension}
    control = {"share": [0.5], "inside": [0.5], "inside_least": [0.01], "keys": [0.1], "common": [0.1], "same": [0.1]}
    found |= {"keys_dimension": keys_dimension, "row": 0.9, "control": {**control, "row": [0.6]}}
    return found | {"changes": [{**CHANGE, "noise": noise} for noise in ("same", "other")]}


LINES = [
    layer(0, [1 - 1e-5, 0.9], [1.0, 0.02], [0.01, 4.0], keys_dimension=1, dimension=1),
    layer(1, [0.6, 0.5], [0.02, 0.9999], [0.01, 0.1], keys_dimension=2),
]


def test_what_rounding_hides_is_neither_met_nor_excluded():
    one, two, three = verdicts_of(LINES)
    assert one == ["met", "excluded", "excluded", "excluded"]
    assert two == ["met", "open", "excluded", "met"]  # a tolerance of 4 on a sine excludes nothing
    assert three == ["open", "open"]
    text = " ".join(findings("vit", LINES))
    assert "Condition 1 is excluded for 3 of 4 heads, and met by 1." in text
    assert "excluded for 1 of 4 heads, and met by 2; of 1, whose keys or values are singular up to rounding" in text
    assert "Condition 3 is not excluded in any layer." in text
    assert "excluded in 2 of 2 layers" in text
    assert text.count("has dimension at most 1 in layer 0 and 0 elsewhere.") == 2
