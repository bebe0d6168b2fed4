"""One architecture, one description: what is written of a model, and the table that it is compiled to.

From an :class:`Architecture` follow its rules (Hugging Face <-> Megatron), the modules that keep an
``_extra_state``, tied tensors, the ONNX graph and the ONNX reader, and most fields of NeMo 2's config. It is
found by lying in ``mappings/models``, or as an entry point of the group ``nemoconv.mappings``.

It is held to :func:`check` when it is built: mistakes would else show in somebody's model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from ..errors import NemoconvError, UnsupportedConfig
from ..formats.text.fiddle import Symbol
from .blocks.stack import Stack, keeping_state
from .choosing import complaints
from .hf.fields import ConfigRule, Value, read_config
from .nemo1.entry import Nemo1
from .nemo2.entry import Nemo2
from .nemo2.fields import ArchivesOnly, NemoClasses
from .table import HOLE_SIZES, Module, Rule, Table

Config = Mapping[str, Value]


@dataclass(frozen=True)
class Architecture:
    """All that is written of one architecture.

    ``model_types``: its name, Hugging Face's ``model_type`` (with ``:class`` where one of its classes is an
    architecture of its own), and other model types that are the same. ``hf_class`` is the class that is
    written, ``other_classes`` are read as well. ``stacks``: a decoder, or several stacks, in the order in
    which they compute. ``config``: the rules for config.json. ``nemo2``: NeMo 2's classes; all rules of
    theirs where it is a :class:`~nemoconv.mappings.nemo2.fields.NemoClasses`. ``nemo1``: that NeMo 1 has it.
    ``before`` and ``extra``: rules that no block gives, of what comes before the layers, and others.
    ``extra_modules``: modules that keep an ``_extra_state`` and do not follow from rules. ``samples``: what
    config.json says, if transformers' defaults alone are no model: checks and tests try it on these.
    ``proofs``: against whom it was proved.

    The other fields are those of :class:`~nemoconv.mappings.table.Table`, where blocks do not give them.
    """

    model_types: tuple[str, ...]
    hf_class: str
    stacks: tuple[Stack, ...]
    config: tuple[ConfigRule, ...]
    nemo2: Nemo2 | NemoClasses
    nemo1: Nemo1 | None = None
    before: tuple[Rule, ...] = ()
    extra: tuple[Rule, ...] = ()
    extra_modules: tuple[Module, ...] = ()
    samples: tuple[Config, ...] = ()
    proofs: tuple[str, ...] = ()
    other_classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] | None = None
    stored_twice: tuple[tuple[str, str], ...] = ()
    normalized_head: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()
    manifest_fields: tuple[tuple[str, Value], ...] = ()
    sizes: Callable[[Config], dict[str, int]] | None = None
    layer_sets: Callable[[Config], Mapping[str, frozenset[int]]] | None = None
    kinds: Callable[[Config], Sequence[str]] | None = None
    varying_factors: frozenset[str] = frozenset()
    steps: tuple[Callable[[Table], object], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not work. Raises ValueError, naming it."""
        check(self)

    @property
    def name(self) -> str:
        """Its ``model_type``, with ``:class`` where it is that of one class."""
        return self.model_types[0]

    @property
    def main(self) -> Stack:
        """The last stack that begins with an embedding: the decoder of a model of several parts."""
        return next(stack for stack in reversed(self.stacks) if stack.names.embedding)

    @property
    def follows(self) -> bool:
        """Whether one stack says all there is: layers compute what its blocks say, and nothing besides."""
        blocks = self.stacks[0].blocks if len(self.stacks) == 1 else None
        whole = blocks is not None and blocks.attention is not None and blocks.mlp is not None
        return whole and not self.before and not self.extra and self.kinds is None and self.layer_sets is None

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of all stacks, among those that no block gives."""
        return (*self.before, *(rule for stack in self.stacks for rule in stack.rules()), *self.extra)

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """Megatron's modules that keep an ``_extra_state`` object."""
        following = (module for stack in self.stacks for module in stack.modules())
        return tuple(dict.fromkeys((*following, *keeping_state(self.extra), *self.extra_modules)))

    @cached_property
    def table(self) -> Table:
        """What binding and planning ask: the description, compiled. Always the same object."""
        blocks = [stack.blocks for stack in self.stacks]
        mixture = next((each.mixture for each in blocks if each.mixture), None)
        mtp = next((each.mtp for each in blocks if each.mtp), None)
        nemo = (
            self.nemo2 if isinstance(self.nemo2, NemoClasses) else self.nemo2.classes(self.main, self.config)
        )
        return Table(
            self.name,
            self.hf_class,
            self.config,
            self.rules,
            nemo,
            modules=self.modules,
            other_classes=self.other_classes,
            ignored=self.ignored,
            tied=self.main.tied() if self.tied is None else self.tied,
            sizes=self.sizes or self.main.model_sizes,
            layer_sets=self.layer_sets or (mixture.layer_sets if mixture else None),
            uniform_layers=mixture.uniform_layers if mixture else None,
            whole_experts=bool(mixture and mixture.whole),
            mtp_layer=mtp.begins if mtp else "",
            copies=mtp.copies if mtp else (),
            normalized_head=self.normalized_head,
            stored_twice=self.stored_twice,
            kinds=self.kinds,
            varying_factors=self.varying_factors,
            spellings=self.spellings,
            files=self.files,
            manifest_fields=self.manifest_fields,
            steps=self.steps,
            verified=self.proofs,
        )


def check(architecture: Architecture) -> None:
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


def _without_size(architecture: Architecture) -> Iterator[str]:
    """Factors and holes of rules for which there is no size in the samples' models."""
    table = architecture.table
    for config in models(architecture):
        sizes = table.sizes(config)
        for rule in table.rules:
            if not rule.applies(config):
                continue
            factors = {
                name for name in rule.view.factors if not (table.kinds and name in table.varying_factors)
            }
            needed = factors | {HOLE_SIZES.get(hole, hole + "s") for hole in rule.holes}
            for name in sorted(needed - sizes.keys()):
                yield f"{rule.nemo} has the factor {name}, for which there is no size"


def models(architecture: Architecture) -> list[dict[str, Value]]:
    """The model configs of the samples; where there are none, of a config.json that leaves all to
    transformers' defaults."""
    table = architecture.table
    kind = {
        "model_type": table.model_type,
        "architectures": [architecture.hf_class],
        "torch_dtype": "bfloat16",
    }
    return [read_config(table.fields, {**kind, **sample})[0] for sample in architecture.samples or ({},)]


def confused(one: Architecture, others: Iterable[Architecture]) -> Iterator[str]:
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
