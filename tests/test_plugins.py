"""Plug-ins: found by entry points, loaded when asked for; a broken or doubled one is named."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from nemoconv import entry_points as plugins
from nemoconv.converters.registry import find_format, formats
from nemoconv.errors import NemoconvError, UsageError
from nemoconv.mappings import architectures, load_table


class Dist:
    def __init__(self, name):
        self.name = name


def point(group, name, value, package):
    made = EntryPoint(name, value, f"nemoconv.{group}")
    return made._for(Dist(package)) if package else made


@pytest.fixture
def install(monkeypatch):
    """Pretend that these entry points are installed."""

    def install(*points):
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda *, group: tuple(p for p in points if p.group == group),
        )
        plugins.entries.cache_clear()

    yield install
    plugins.entries.cache_clear()


def test_what_is_built_in_loads(install):
    install()
    for group in ("converters", "mappings"):
        for name, entry in plugins.entries(group).items():
            assert entry.origin == "nemoconv"
            assert entry.name == name
            assert entry.load() is entry.load()


def test_a_plug_in_is_found_behind_what_is_built_in(install, monkeypatch):
    module = types.ModuleType("toy_plugin")
    module.TABLE = object()
    monkeypatch.setitem(sys.modules, "toy_plugin", module)
    install(point("mappings", "toy", "toy_plugin:TABLE", "toy-package"))
    entry = plugins.entries("mappings")["toy"]
    assert entry == plugins.Registration("toy", "toy-package", "toy_plugin:TABLE")
    assert load_table("toy") is module.TABLE
    assert list(plugins.entries("mappings"))[-1] == "toy"
    assert "toy" in architectures()


def test_nothing_is_imported_until_it_is_asked_for(install):
    install(point("converters", "toy", "no_such_module_xyz:Toy", "toy-package"))
    assert "toy" in plugins.entries("converters")
    assert find_format("hf").name == "hf"


@pytest.mark.parametrize(
    ("value", "because"),
    [
        ("no_such_module_xyz:Toy", "ModuleNotFoundError: No module named 'no_such_module_xyz'"),
        ("toy_plugin:Missing", "AttributeError: module 'toy_plugin' has no attribute 'Missing'"),
        ("toy_breaks:Toy", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_plug_in_is_named(install, monkeypatch, tmp_path, value, because):
    monkeypatch.setitem(sys.modules, "toy_plugin", types.ModuleType("toy_plugin"))
    (tmp_path / "toy_breaks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(point("converters", "toy", value, "toy-package"))
    with pytest.raises(NemoconvError) as caught:
        find_format("toy")
    assert caught.value.message == (f"the plug-in 'toy' of package 'toy-package' cannot be loaded: {because}")
    assert caught.value.hint == "repair or uninstall toy-package"
    assert caught.value.__cause__ is not None
    assert caught.value.exit_code == 70


def test_a_plug_in_of_another_version_is_named(install, monkeypatch):
    """Such as a Converter of 0.1.0; it stops nobody else."""
    module = types.ModuleType("toy_plugin")
    module.Toy = type("Toy", (), {"name": "toy", "options": frozenset({"frob"})})
    monkeypatch.setitem(sys.modules, "toy_plugin", module)
    install(point("converters", "toy", "toy_plugin:Toy", "toy-package"))
    with pytest.raises(NemoconvError) as caught:
        find_format("toy")
    assert caught.value.message == "the plug-in 'toy' of package 'toy-package' is no nemoconv.plugin.Format"
    assert "toy" not in [each.name for each in formats()]


def test_a_name_that_two_claim(install):
    install(
        point("mappings", "toy", "one:TABLE", "package-one"),
        point("mappings", "toy", "two:TABLE", "package-two"),
    )
    with pytest.raises(UsageError) as caught:
        plugins.entries("mappings")
    assert caught.value.message == "mapping 'toy' is claimed by 'package-one' and 'package-two'"
    assert caught.value.hint == "uninstall one of them"


def test_a_name_that_is_built_in_cannot_be_taken(install):
    install(point("converters", "hf", "evil:HF", "evil-package"))
    with pytest.raises(UsageError) as caught:
        plugins.entries("converters")
    assert caught.value.message == "converter 'hf' is claimed by 'nemoconv' and 'evil-package'"


def test_the_same_twice_is_no_conflict(install):
    """An editable install beside its old metadata lists an entry point twice."""
    twice = point("mappings", "toy", "one:TABLE", "package-one")
    install(twice, twice)
    assert plugins.entries("mappings")["toy"].origin == "package-one"


def test_an_entry_point_of_nobody(install):
    install(point("mappings", "toy", "one:TABLE", None))
    assert plugins.entries("mappings")["toy"].origin == "unknown"


def test_unknown_names(install):
    install()
    with pytest.raises(UsageError) as caught:
        find_format("frob")
    assert caught.value.message == "unknown format 'frob'"
    assert {"hf", "nemo2"} <= set(caught.value.hint.removeprefix("one of: ").split(", "))
