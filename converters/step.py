"""What an architecture needs besides moving its tensors: each such thing is a :class:`Step`.

Binding and planning ask the steps of a model's table (:func:`nemoconv.converters.steps.steps_of`), and know
none of them by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

from ..mappings.hf.fields import Value
from ..mappings.table import Instance, Rule, Table
from ..tensors.stored import StoredTensor
from .base import Checkpoint, Model, Side

#: (a tensor, the one that it must be equal to)
Pairs = Sequence[tuple[StoredTensor, StoredTensor]]


class Binding(Protocol):
    """What a step may ask of a checkpoint that is bound to its table."""

    checkpoint: Checkpoint
    model: Model
    sizes: dict[str, int]
    instances: list[Instance]

    def stored(self, name: str, rule: Rule | None = None) -> StoredTensor:
        """The whole of a tensor that the checkpoint calls ``name``, by its rule where that is known."""

    def held_as(self, name: str) -> str | None:
        """What the checkpoint calls the tensor ``name`` of a rule, None where it has none of that name."""

    def spelled(self, name: str) -> str:
        """What the checkpoint calls a tensor that belongs to no rule."""

    def claimed(self, step: Step) -> Sequence[tuple[str, str | None]]:
        """What a step claimed: (tensor, its original, None for what is left out)."""


class Step:
    """One thing that some architectures need. Steps hold no state but their table; each method has an answer
    for a model that needs nothing."""

    #: what is claimed is compared with its original whenever weights are compared
    compares: ClassVar[bool] = False

    def __init__(self, table: Table) -> None:
        self.table = table

    def claim(self, bound: Binding, left: Collection[str]) -> Mapping[str, str | None]:
        """Of tensors that belong to no rule: those that this step answers for, with the tensor of a rule that
        each must be equal to, None for what is left out as was asked for."""
        return {}

    def explain(self, bound: Binding, left: Collection[str]) -> str:
        """What to do about tensors that nobody answers for, if this step knows all of them."""
        return ""

    def again(self, config: Mapping[str, Value], side: Side) -> Mapping[str, Sequence[str]]:
        """Tensors that a checkpoint with names of ``side`` has again, with the names of the copies."""
        return {}

    def check(self, bound: Binding, *, rewrites: bool) -> Iterator[str]:
        """Look at weights while a conversion is planned; what a report should say. ``rewrites``: only the
        layout changes. Raises CorruptCheckpoint, MappingError."""
        yield from ()

    def notes(self, bound: Binding, target: Side) -> Iterator[str]:
        """What a report should say besides."""
        yield from ()

    def compare(self, where: str, pairs: Pairs) -> None:
        """Compare what was claimed with the originals, before anything is written. Raises MappingError."""
