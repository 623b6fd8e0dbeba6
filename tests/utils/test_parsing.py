"""JSON and YAML: what is read, and that what is hostile ends quickly in a ValueError."""

from __future__ import annotations

import json
import resource
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_easyrobust.utils import parse_json, parse_yaml, require_bounded

LEVELS = "abcdefghijk"
ALIASES = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{now}: &{now} [{','.join(['*' + before] * 9)}]\n" for before, now in pairwise(LEVELS)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{now}: &{now} {{<<: [{','.join(['*' + before] * 9)}]}}\n" for before, now in pairwise(LEVELS)
)
HOSTILE_YAML = {
    "aliases": ALIASES,
    "merges": MERGES,
    "itself": "&a [*a]",
    "nested": "[" * 5000,
    "nested and closed": "[" * 5000 + "]" * 5000,
    "nested blocks": "\n".join(" " * depth + "a:" for depth in range(1500)),
    "no alias": "*a",
    "tab": "a:\n\tb: 1",
    "object": "!!python/object/apply:os.system [echo]",
    "two documents": "a\n---\nb",
    "unhashable key": "{[1]: 2}: 3",
    "control character": "a: \x00",
    "no date": "2001-99-99",
    "long": "- a\n" * 70_000,
    "no timestamp": "!!timestamp x",
}


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_hostile_yaml_is_a_value_error_and_small(text):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"^.{5,300}$"):
        parse_yaml(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # KiB


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab:-*&<>[]{},|!'\"%@#? \n\t\x000129~.\u2028"), max_size=40))
def test_any_text_is_yaml_or_a_value_error(text):
    try:
        value = parse_yaml(text)
    except ValueError:
        return
    # What is no error is what yaml's own safe loader reads, where texts are compared to spare nan.
    assert repr(value) == repr(yaml.safe_load(text))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.binary(max_size=30) | st.text(max_size=30))
def test_any_bytes_are_json_or_a_value_error(text):
    try:
        value = parse_json(text)
    except ValueError:
        return
    assert repr(value) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000, "[" * 101 + "]" * 101, b"\xff", "1" * 5000, ""],
    ids=lambda text: f"{text[:5]!r} of {len(text)}",
)
def test_hostile_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


@pytest.mark.parametrize("value", [[[]] * 200, "[" * 200, {'"[\\"': ["[{" * 100]}, [[[["]"] * 99]]]])
def test_brackets_that_are_not_nested_or_in_texts_are_no_depth(value):
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode("utf-16")) == value


def test_aliases_that_people_write_are_read():
    text = "base: &base {lr: 1.0e-5, betas: [0.9, 0.999]}\nours: {<<: *base, lr: 2.0e-5}\nlist: [*base, *base]"
    base = {"lr": 1e-5, "betas": [0.9, 0.999]}
    assert parse_yaml(text) == {"base": base, "ours": base | {"lr": 2e-5}, "list": [base, base]}


def test_shared_values_count_each_time_they_would_be_written():
    shared = [[0] * 9] * 10  # 1 + 10 * (1 + 9) values
    require_bounded(shared, 101)
    with pytest.raises(ValueError, match="100 values"):
        require_bounded(shared, 100)
    holder: list = []
    holder.append({"a": holder})
    with pytest.raises(ValueError, match="themselves"):
        require_bounded(holder)


def test_a_name_twice_is_no_value():
    with pytest.raises(ValueError, match="'n' twice"):
        parse_json('{"a": {"n": 1, "n": 2}}')
    with pytest.raises(ValueError, match="'lr' twice, line 3"):
        parse_yaml("lr: 1\nb: 2\nlr: 3")
    assert parse_json('[{"n": 1}, {"n": 2}]') == [{"n": 1}, {"n": 2}]


def test_what_yaml_merges_may_be_overridden():
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 2, "y": 3}}


@pytest.mark.parametrize("text", ["!!bool x", "!!timestamp x", "!!int ''", "!!float x", "2001-99-99", "!!binary é"])
def test_a_value_that_is_not_of_its_type_is_a_value_error(text):
    """yaml's own constructors raise KeyError, AttributeError, IndexError, ..."""
    with pytest.raises(ValueError):  # noqa: PT011
        parse_yaml(f"a: {text}")
