"""What an architecture is held to when it is built: mistakes that would else show in somebody's model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from ..errors import NemoconvError, UnsupportedConfig
from ..formats.text.fiddle import Symbol
from .choosing import complaints
from .hf.fields import Value, read_config
from .nemo2.fields import ArchivesOnly
from .table import HOLE_SIZES, Table


class Described(Protocol):
    """What the checks ask of an architecture."""

    @property
    def name(self) -> str: ...

    @property
    def hf_class(self) -> str: ...

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def table(self) -> Table: ...


def check(architecture: Described) -> None:
    """Raise ValueError, naming what is wrong, for an architecture that could not work.

    Tensors named twice, or that have a hole on one side only, are found where its table is compiled.
    """
    try:
        table = architecture.table
    except ValueError as error:
        told = str(error).removeprefix(f"{architecture.name}: ")
        raise ValueError(f"{architecture.name}: {told}") from None
    faults = chain(_owned_twice(table), _unknown_conditions(table), _without_size(architecture))
    try:
        fault = next(faults, None)
    except UnsupportedConfig as error:
        fault = f"a sample cannot be read: {error}; give samples that can"
    except KeyError as error:
        fault = f"a rule or a block asks for {error}, a field that no rule for config.json sets before"
    if fault:
        raise ValueError(f"{architecture.name}: {fault}")


def _owned_twice(table: Table) -> Iterator[str]:
    """Keys of config.json, fields of the model config and of NeMo 2's config that two rules own. What a rule
    for a part of the model owns beside the whole's is handed on to it."""
    own = [rule for rule in table.fields if not hasattr(rule, "rules")]
    for what, owners in (
        ("the key {} of config.json", [(rule, rule.hf_keys) for rule in own]),
        ("the field {} of the model config", [(rule, rule.fields) for rule in own]),
        ("the field {} of NeMo 2's config", [(rule, rule.names) for rule in table.nemo.rules]),
    ):
        counts = Counter(name for _, names in owners for name in names)
        for name in sorted(name for name, count in counts.items() if count > 1):
            both = " and ".join(repr(rule) for rule, names in owners if name in names)
            yield f"{what.format(name)} is owned twice, by {both}"


def _unknown_conditions(table: Table) -> Iterator[str]:
    """Conditions on fields that no rule for config.json sets."""
    known = frozenset().union(*(rule.fields for rule in table.fields))
    for rule in table.rules:
        for name, _ in (*rule.when, *rule.hf_when):
            if name not in known:
                yield f"{rule.nemo} is there when {name} says so, a field that no rule for config.json sets"


def _without_size(architecture: Described) -> Iterator[str]:
    """Factors and holes of rules for which there is no size in the samples' models."""
    table = architecture.table
    for config in models(architecture):
        sizes = table.sizes(config)
        for rule in table.rules:
            if not rule.applies(config):
                continue
            factors = {name for name in rule.view.factors if not (table.kinds and name in table.varied)}
            needed = factors | {HOLE_SIZES.get(hole, hole + "s") for hole in rule.holes}
            for name in sorted(needed - sizes.keys()):
                yield f"{rule.nemo} has the factor {name}, for which there is no size"


def models(architecture: Described) -> list[dict[str, Value]]:
    """The model configs of the samples; where there are none, of a config.json that leaves all to
    transformers' defaults."""
    table = architecture.table
    kind = {
        "model_type": table.model_type,
        "architectures": [architecture.hf_class],
        "torch_dtype": "bfloat16",
    }
    return [read_config(table.fields, {**kind, **sample})[0] for sample in architecture.samples or ({},)]


def confused(one: Described, others: Iterable[Described]) -> Iterator[str]:
    """Of which of ``others`` a NeMo 2 config of ``one`` might be as well: none declares the other
    (``read_as``), and no field tells."""
    nemo = one.table.nemo
    for config in models(one):
        try:
            name, fields = nemo.write({"tensor_parallel_size": 1, **config})
        except NemoconvError:
            continue
        for other in others:
            told = one.table.nemo.read_as == other.name or other.table.nemo.read_as == one.name
            if other.name != one.name and not told and not _complains(other.table, nemo.module, name, fields):
                yield (
                    f"{one.name}: its NeMo 2 config {name} might be that of {other.name}, too; one of them "
                    "must say read_as"
                )


def _complains(table: Table, module: str, name: str, fields: Mapping[str, Any]) -> bool:
    symbol = Symbol(module, name)
    fits = table.nemo.fits(symbol, fields) and name in table.nemo.defaults
    return isinstance(table.nemo, ArchivesOnly) or not fits or complaints(table, symbol, fields) > 0
