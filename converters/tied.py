"""A tensor under two names: an output layer that is the embedding, or what Megatron stores twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ..errors import MappingError
from ..mappings.hf.fields import Value
from .base import Side
from .step import Binding, Step


class Tied(Step):
    """A tied model may hold its embedding twice: the copies must be equal, and one is dropped. What Megatron
    itself stores under two names (``twice``) is written under both."""

    def claim(self, bound: Binding, left: Collection[str]) -> Mapping[str, str | None]:
        found: dict[str, str | None] = {}
        for copy, original in (*self.table.tied, *self.table.twice):
            name = bound.spelled(copy)
            if name in left and bound.held_as(original) is not None:
                found[name] = bound.held_as(original)
        return found

    def again(self, config: Mapping[str, Value], side: Side) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for copy, original in self.table.twice if side == "nemo" else ():
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
            if difference and (copy, original) in self.table.twice:
                raise MappingError(f"{source.path}: {copy} and {original} are one tensor, but {difference}")
            if difference:
                raise MappingError(
                    f"{source.path}: the config ties {copy} to {original}, but {difference}",
                    hint='set "tie_word_embeddings" to false in config.json if both are meant',
                )
            if (copy, original) not in self.table.twice:
                yield f"{copy} equals {original}, to which the config ties it, and is left out"
