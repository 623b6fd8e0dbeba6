"""JSON and YAML in which one reader sees one value and another reader another."""

from __future__ import annotations

import pytest

from ns_easyrobust.utils import parse_json, parse_yaml


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
