"""Which architecture a NeMo 2 config is of: the one with the fewest complaints.

NeMo has one class for many architectures. A field that an architecture cannot have written is a complaint;
its own configs have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import NemoconvError
from ..formats.text.fiddle import Symbol
from .hf.fields import Value, read_config, write_config
from .nemo2.fields import harmless
from .table import Table


def complaints(table: Table, config_class: Symbol, given: Mapping[str, Value]) -> int:
    """How many fields of a config class that it knows, with these set, an architecture cannot have written.

    Where it could have written each of them, they are read, said in config.json and read again: what differs
    then counts, too.
    """
    nemo = table.nemo
    fields = {**nemo.defaults[config_class.name], **given}
    owned = frozenset().union(*(rule.names for rule in nemo.rules))
    wrong = sum(name not in owned and not harmless(name, fields) for name in fields)
    config: dict[str, Value] = {}
    for rule in nemo.rules:
        try:
            rule.read(fields, config)
        except NemoconvError:
            wrong += 1
        except (
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ):  # a field that an earlier complaint left out
            wrong += not wrong
    return wrong or _changes(table, config)


def _changes(table: Table, config: dict[str, Value]) -> int:
    """How many fields of a model config config.json says otherwise."""
    config["vocab_size"] = config.get("vocab_size") or 1  # a tokenizer's, where the config has none
    try:
        again, _ = read_config(table.fields, write_config(table.fields, config))
    except NemoconvError:
        return 1
    return sum(config[name] != again[name] for name in again if name in config)


def choose(
    tables: Iterable[Table], config_class: Symbol, given: Mapping[str, Value], architecture: Any = None
) -> Table | None:
    """The one of ``tables`` that a config is of; None if none has such a class.

    Of those that complain as little, ``architecture`` is meant, which a manifest names, or the one that does
    not declare another for its configs (``read_as``).
    """
    found = [table for table in tables if table.nemo.fits(config_class, given)]
    known = [table for table in found if config_class.name in table.nemo.defaults]
    if len(known) < 2:
        return next(iter(known or found), None)

    counts = {table.architecture: complaints(table, config_class, given) for table in known}
    nearest = [table for table in known if counts[table.architecture] == min(counts.values())]
    names = {table.architecture for table in nearest}
    if architecture in names:
        names = {architecture}
    return next(table for table in nearest if table.architecture in names and table.nemo.read_as not in names)
