"""Attributes replaced for a while, on modules and classes."""

from __future__ import annotations

from types import ModuleType

import pytest

from ns_easyrobust.utils.patching import replaced_attributes


class Parent:
    def greet(self):
        return "parent"

    @staticmethod
    def twice(x):
        return 2 * x


class Child(Parent):
    pass


def test_attributes_are_replaced_while_the_body_runs():
    module = ModuleType("a_module")
    module.first, module.second = 1, 2
    with replaced_attributes(module, first=10, second=20):
        assert (module.first, module.second) == (10, 20)
    assert (module.first, module.second) == (1, 2)


def test_an_attribute_that_was_not_there_is_deleted():
    module = ModuleType("a_module")
    with replaced_attributes(module, added=1):
        assert module.added == 1
    assert not hasattr(module, "added")


def test_an_inherited_method_is_inherited_again():
    with replaced_attributes(Child, greet=lambda self: "replaced"):
        assert (Child().greet(), Parent().greet()) == ("replaced", "parent")
    assert "greet" not in vars(Child)
    assert Child().greet() == "parent"


def test_a_static_method_stays_one():
    with replaced_attributes(Parent, twice=staticmethod(lambda x: 3 * x)):
        assert Parent().twice(1) == 3
    assert Parent().twice(1) == 2


def test_an_error_in_the_body_undoes_it_too():
    with pytest.raises(KeyError), replaced_attributes(Parent, greet=None):
        raise KeyError
    assert Parent().greet() == "parent"


def test_nested_replacements_are_undone_in_turn():
    with replaced_attributes(Parent, greet=lambda self: "outer"):
        with replaced_attributes(Parent, greet=lambda self: "inner"):
            assert Parent().greet() == "inner"
        assert Parent().greet() == "outer"
    assert Parent().greet() == "parent"
