"""What NeMo 2's config classes take for fields that are not set, by the name of the class.

``io.json`` lists the fields that were set, so a reader has to know the rest. ``classes.json`` holds it, every
class as its parent and what it has otherwise; ``scripts/read_nemo2_classes.py`` reads it off NeMo 2.5.3 with
megatron-core 0.14.0, and off 2.7.3 what 2.5.3 has not: ``read_off`` says which.

A class's ``__post_init__`` fills in some fields that are None: ``ffn_hidden_size`` = 4 * ``hidden_size``,
``kv_channels`` = ``hidden_size`` // ``num_attention_heads``, ``num_query_groups`` = ``num_attention_heads``.
Where ``vocab_size`` is None, it is the tokenizer's size, rounded up to ``make_vocab_size_divisible_by`` * TP.

From 2.0 to 2.7 the fields that a Llama is built by have kept their values but for ``seq_length``: 4096 in
Llama 3.2 until 2.3, 1024 in Llama3Config and Llama31Config in 2.0. Gemma2Config27B has 128 ``kv_channels`` in
2.7. A checkpoint's model.yaml, where it is there, tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...formats.text.fiddle import PARTIAL, Node, Symbol, Value

#: field -> value
Defaults = Mapping[str, Value]


def defaults(name: str, **changes: Value) -> Defaults:
    """What a class takes for its fields, in their order; ``changes`` replace some or come last.

    Raises KeyError for a class that is not in the file.
    """
    found = _defaults(name)
    return MappingProxyType({**found, **changes}) if changes else found


def family(*roots: str, without: tuple[str, ...] = (), **changes: Value) -> Mapping[str, Defaults]:
    """Classes by name: ``roots`` and those of the same modules that derive from them, but not through any of
    ``without``. ``changes`` as for :func:`defaults`, in each. Nothing is read until it is asked for."""
    return _Family(roots, frozenset(without), changes)


class _Family(Mapping[str, Defaults]):
    def __init__(self, roots: tuple[str, ...], without: frozenset[str], changes: Mapping[str, Value]) -> None:
        self._roots, self._without, self._changes = roots, without, changes

    @cached_property
    def _names(self) -> Mapping[str, None]:
        return dict.fromkeys(name for root in self._roots for name in _derived(root, self._without))

    def __getitem__(self, name: str) -> Defaults:
        if name not in self._names:
            raise KeyError(name)
        return defaults(name, **self._changes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def module(name: str) -> str:
    """The module that defines a class."""
    return _class(name)[0]


def _class(name: str) -> tuple[str, str | None, Mapping[str, Any]]:
    try:
        return _file()[name]
    except KeyError:
        raise KeyError(f"{name} is none of the classes read off NeMo: say its defaults") from None


@cache
def _file() -> Mapping[str, tuple[str, str | None, Mapping[str, Any]]]:
    """Class -> (module, parent, what it has otherwise), in the file's order: parents come first."""
    document = json.loads(Path(__file__).with_name("classes.json").read_bytes())
    return {
        name: (module, found.get("parent"), found["set"])
        for module, held in document.items()
        for name, found in held["classes"].items()
    }


@cache
def _defaults(name: str) -> Defaults:
    _, parent, changes = _class(name)
    inherited = _defaults(parent) if parent else {}
    return MappingProxyType({**inherited, **{field: _value(raw) for field, raw in changes.items()}})


def _value(raw: Any) -> Value:
    """A value as the file spells it."""
    match raw:
        case {"symbol": dotted}:
            return Symbol.parse(dotted)
        case {"tuple": items}:
            return tuple(_value(item) for item in items)
        case {"config": dotted, "set": arguments}:
            return Node(Symbol.parse(dotted), {name: _value(value) for name, value in arguments.items()})
        case {"partial": dotted, "set": arguments}:
            args = {name: _value(value) for name, value in arguments.items()}
            return Node(Symbol.parse(dotted), args, PARTIAL)
        case [*items]:
            return [_value(item) for item in items]
    plain: Value = raw
    return plain


def _derived(root: str, without: frozenset[str]) -> Iterator[str]:
    """``root`` and what derives from it in its module."""
    found, own = {root}, module(root)
    yield root
    for name, (place, parent, _) in _file().items():
        if parent in found and place == own and name not in without:
            found.add(name)
            yield name
