"""JSON and YAML that others wrote, in bounded time and memory; whatever is wrong with it is a ``ValueError``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

_MOST_VALUES = 100_000
_LONGEST_YAML = 2**18  # characters; yaml takes a second for each 100,000
_DEEPEST = 100  # levels of nesting
_JSON_TEXT_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_MERGE, _DEFAULT_VALUE, _TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "value", "str"))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, no UTF-8, too long a number, nested too deeply, or a name twice in one object.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")  # a path that is no UTF-8 is a record too
    if text.count("[") + text.count("{") > _DEEPEST and _json_depth(text) > _DEEPEST:
        raise ValueError("values nested too deeply")  # how deep json itself goes depends on the version of Python
    return json.loads(text, object_pairs_hook=_distinct)


def _json_depth(text: str) -> int:
    """The deepest nesting of brackets outside of texts."""
    depth = deepest = 0
    for found in _JSON_TEXT_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; JSON would let the last of equal names win without a word."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:100]!r} twice")
        values[name] = value
    return values


class _BoundedLoader(yaml.SafeLoader):
    """yaml's safe loader: a limit to nesting, no name twice, and ``<<`` cannot multiply what it merges."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth == _DEEPEST:
            raise ValueError("values nested too deeply")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in names:
                    raise ValueError(f"{key.value[:100]!r} twice, line {key.start_mark.line + 1}")
                names.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the pairs that ``<<`` merges before the mapping's own, which win as they come later.

        Not PyYAML's own, which since 6.0.4 lets an overridden value win where a merged mapping is merged again.
        """
        own, merged = [], []
        for key, value in node.value:
            if key.tag != _MERGE:
                key.tag = _TEXT if key.tag == _DEFAULT_VALUE else key.tag
                own.append((key, value))
                continue
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in reversed(sources):  # the first wins
                if not isinstance(source, yaml.MappingNode):
                    raise ValueError(f"{source.id} merged into a mapping, line {source.start_mark.line + 1}")
                self.flatten_mapping(source)
                merged += source.value
                if len(merged) > _MOST_VALUES:
                    raise ValueError(f"more than {_MOST_VALUES} values")
        node.value = merged + own


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of at most 2^18 characters, of plain types only.

    Raises:
        ValueError: no YAML, too long, nested too deeply, a name twice in one mapping, or more than 100,000 values once
            each alias is written out.
    """
    if len(text) > _LONGEST_YAML:
        raise ValueError(f"{len(text)} characters, more than {_LONGEST_YAML}")
    try:
        value = yaml.load(text, _BoundedLoader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"no YAML{where}: {str(error.problem or error.context)[:200]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise ValueError("values nested too deeply") from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # of `!!bool x`, `!!timestamp x`, ...
        raise ValueError("no YAML: a value that is not of the type that its tag names") from error
    require_bounded(value)
    return value


def require_bounded(value: Any, most: int = _MOST_VALUES) -> None:
    """Refuse dicts, lists, tuples, sets and namespaces that, written out one in another, would fill the memory.

    Raises:
        ValueError: more than ``most`` values with each shared one counted anew, one that holds itself, or nested more
            than 100 deep.
    """
    sizes: dict[int, int] = {}  # by id; 0 while what it holds is being counted

    def size(inner: Any, depth: int) -> int:
        if isinstance(inner, argparse.Namespace):
            inner = vars(inner)
        if not isinstance(inner, Mapping | list | tuple | set | frozenset):
            return 1
        if depth > _DEEPEST:
            raise ValueError("values nested too deeply")
        if id(inner) not in sizes:
            sizes[id(inner)] = 0
            held = [*inner, *inner.values()] if isinstance(inner, Mapping) else inner
            total = 1
            for item in held:
                total += size(item, depth + 1)
                if total > most:
                    raise ValueError(f"more than {most} values")
            sizes[id(inner)] = total
        if not sizes[id(inner)]:
            raise ValueError("values that hold themselves")
        return sizes[id(inner)]

    size(value, 0)
