"""The steps that a table brings along: which they are, and those that several kinds of models need."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ..errors import CorruptCheckpoint, MappingError
from ..mappings.hf.fields import Value
from ..mappings.table import Table
from . import manifest
from .base import Side
from .mtp_layers import MtpStep
from .normalized_head import NormalizedHeadStep
from .step import Binding, Step


def steps_of(table: Table) -> tuple[Step, ...]:
    """In the order in which they are asked."""
    steps: list[Step] = []
    if table.mtp_layer or table.copies:
        steps.append(MtpStep(table))
    if table.tied or table.stored_twice:
        steps.append(Tied(table))
    if any(rule.hf_when for rule in table.rules):
        steps.append(Zeros(table))
    if table.normalized_head:
        steps.append(NormalizedHeadStep(table))
    for make in table.steps:
        step = make(table)
        if not isinstance(step, Step):
            raise TypeError(f"{table.architecture}: {make!r} makes no Step")
        steps.append(step)
    return tuple(steps)


class Tied(Step):
    """A tensor under two names. A tied model may hold its embedding twice: the copies must be equal, and one
    is dropped. What Megatron itself stores under two names (``stored_twice``) is written under both."""

    def claim(self, bound: Binding, left: Collection[str]) -> Mapping[str, str | None]:
        found: dict[str, str | None] = {}
        for copy, original in (*self.table.tied, *self.table.stored_twice):
            name = bound.spelled(copy)
            if name in left and bound.held_as(original) is not None:
                found[name] = bound.held_as(original)
        return found

    def again(self, config: Mapping[str, Value], side: Side) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for copy, original in self.table.stored_twice if side == "nemo" else ():
            found.setdefault(original, []).append(copy)
        return found

    def check(self, bound: Binding, *, rewrites: bool) -> Iterator[str]:
        from ..resharding.equal import first_difference

        source = bound.checkpoint
        for copy, original in bound.claimed(self):
            assert original is not None  # nothing is left out here
            a, b = bound.stored(copy), bound.stored(original)
            same = a.shape == b.shape and a.dtype == b.dtype
            difference = first_difference(a, b) if same else "their shapes or dtypes differ"
            if difference and (copy, original) in self.table.stored_twice:
                raise MappingError(f"{source.path}: {copy} and {original} are one tensor, but {difference}")
            if difference:
                raise MappingError(
                    f"{source.path}: the config ties {copy} to {original}, but {difference}",
                    hint='set "tie_word_embeddings" to false in config.json if both are meant',
                )
            if (copy, original) not in self.table.stored_twice:
                yield f"{copy} equals {original}, to which the config ties it, and is left out"


class Zeros(Step):
    """Tensors that Megatron has and Hugging Face leaves out, because the config says that they are zero: they
    must be."""

    def check(self, bound: Binding, *, rewrites: bool) -> Iterator[str]:
        from ..resharding.equal import first_nonzero

        kept = rewrites or bound.checkpoint.side == "hf"
        for instance in bound.instances if not kept else ():
            if instance.in_hf or instance.rule.never_read:
                continue
            tensor = bound.stored(bound.held_as(instance.nemo) or instance.nemo, instance.rule)
            place = first_nonzero(tensor)
            if place is not None:
                raise CorruptCheckpoint(
                    f"{bound.checkpoint.path}: {tensor.name} should be zero, as {manifest.NAME} says, "
                    f"but is not at {place}",
                    hint=f"if the model was trained further, remove {manifest.NAME}",
                )
        yield from ()
