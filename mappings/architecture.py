"""One architecture, one description: what is written of a model, and the table that it is compiled to.

From an :class:`Architecture` follow its rules (Hugging Face <-> Megatron), the modules that keep an
``_extra_state``, tied tensors, the ONNX graph and the ONNX reader, and most fields of NeMo 2's config. It is
found by lying in ``mappings/models``, or as an entry point of the group ``nemoconv.mappings``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .blocks.stack import Stack, keeping_state
from .checks import check
from .hf.fields import ConfigRule, Value
from .nemo1.entry import Nemo1
from .nemo2.entry import Nemo2
from .nemo2.fields import NemoClasses
from .table import Module, Rule, Table

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
    twice: tuple[tuple[str, str], ...] = ()
    unit_rows: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()
    carried: tuple[tuple[str, Value], ...] = ()
    sizes: Callable[[Config], dict[str, int]] | None = None
    layer_sets: Callable[[Config], Mapping[str, frozenset[int]]] | None = None
    kinds: Callable[[Config], Sequence[str]] | None = None
    varied: frozenset[str] = frozenset()

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
            alike=mixture.alike if mixture else None,
            whole_experts=bool(mixture and mixture.whole),
            further=mtp.begins if mtp else "",
            copies=mtp.copies if mtp else (),
            unit_rows=self.unit_rows,
            twice=self.twice,
            kinds=self.kinds,
            varied=self.varied,
            spellings=self.spellings,
            files=self.files,
            carried=self.carried,
            verified=self.proofs,
        )
