from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from ns_easyrobust.errors import OptionError
from ns_easyrobust.nullspace.solvers.registry import register_solver
from ns_easyrobust.training.augmentations.registry import register_augmentation
from ns_easyrobust.utils import registry as module
from ns_easyrobust.utils.registry import Registry


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(module, "_registries", [])
    monkeypatch.setattr(module, "_import_started", {module.PLUGINS})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable folder of two files, which register what they define in ``folder.things``."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text(
        "from ns_easyrobust.utils.registry import Registry\nthings = Registry('thing', 'folder')\n"
    )
    for name in ("one", "two"):
        (tmp_path / "folder" / f"{name}.py").write_text(
            f"import time\nfrom folder import things\ntime.sleep(0.1)\nthings.add('{name}', 1, 'folder.{name}.f')\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "folder"
    for name in [name for name in sys.modules if name.split(".")[0] == "folder"]:
        del sys.modules[name]


def test_threads_that_ask_at_once_all_see_every_file(package):
    import folder

    found = []
    threads = [threading.Thread(target=lambda: found.append(list(folder.things.complete()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["one", "two"]] * 4


def test_files_are_imported_again_after_a_failure(package):
    import folder

    text = (package / "two.py").read_text()
    (package / "two.py").write_text("raise ImportError('for now')\n")
    with pytest.raises(ImportError, match="for now"):
        folder.things.complete()
    (package / "two.py").write_text(text + "# whole again\n")
    assert list(folder.things.complete()) == ["one", "two"]


def test_names_of_a_folder_are_taken_before_its_files_are_asked_for(package):
    import folder

    with pytest.raises(OptionError, match="thing 'two': expected a new name, found one that is taken"):
        folder.things.add("two", 2, "elsewhere.two")


def test_a_namespace_shares_names_and_reserved_ones():
    one = Registry[int]("one", namespace="both", reserved=("all",))
    other = Registry[int]("other", namespace="both", reserved=())
    one.add("a", 1, "m.a")
    for name in ("a", "all"):
        with pytest.raises(OptionError, match="is taken"):
            other.add(name, 2, "m.b")
    one.add("a", 3, "m.a")  # a notebook's cell, run again
    assert one == {"a": 3}
    with pytest.raises(OptionError, match="expected a name of letters, digits, - and _, found ''"):
        other.add("", 2, "m.b")


def test_a_plugin_that_fails_leaves_nothing_behind(monkeypatch, caplog):
    things = Registry[int]("thing")

    def half() -> None:
        things.add("half", 1, "plugin.half")
        raise SystemExit("and\nthen this")

    def whole() -> None:
        things.add("whole", 2, "plugin.whole")

    plugins = [SimpleNamespace(name=load.__name__, value="plugin", load=load) for load in (half, whole)]
    monkeypatch.setattr(module, "_import_started", set())
    monkeypatch.setattr(module, "entry_points", lambda group: plugins)
    assert things.complete() == {"whole": 2}
    assert "plugin half (plugin) is left out: SystemExit: and then this" in caplog.text


def test_a_decorator_without_its_parentheses_is_told():
    with pytest.raises(OptionError, match="solver: expected a name of letters"):

        @register_solver
        def forgetful(objective, start, config, on_step):
            raise NotImplementedError

    with pytest.raises(OptionError, match="augmentation: expected a name of letters"):

        @register_augmentation
        class Forgetful:
            pass
