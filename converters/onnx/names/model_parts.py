"""The parts of a transformer that weights are found for: layers, their projections, their experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .spans import Spans
from .weighted import Linear, Rows, Weight

OPERANDS: Final = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a model: ``role`` ("query", "mlp norm", ...) in a layer, or outside the layers; ``expert``:
    of this one of several alike."""

    role: str
    layer: int | None = None
    kind: str = "weight"
    expert: int | None = None

    def of(self, kind: str) -> Place:
        return replace(self, kind=kind)

    def __str__(self) -> str:
        expert = f" of expert {self.expert}" if self.expert is not None else ""
        return f"{self.role} {self.kind}{expert}" + (
            f" of layer {self.layer}" if self.layer is not None else ""
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A linear layer, or these of its rows; of a stack of them, the one at ``item``."""

    linear: Linear
    rows: Rows | None = None
    item: int | None = None

    @property
    def weight(self) -> Weight:
        return self._of(self.linear.weight)

    @property
    def bias(self) -> Weight | None:
        return self._of(self.linear.bias) if self.linear.bias is not None else None

    def _of(self, held: Weight) -> Weight:
        return replace(held, rows=self.rows, item=held.item if self.item is None else self.item)


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP, or a mixture of experts: its parts by role, with the number of the expert. ``widened`` are the
    bits of the layers that the residual stream feeds, ``added`` of what it adds to the stream;
    ``correction`` is added to the router's scores for choosing only."""

    parts: Sequence[tuple[str, int | None, Part]]
    widened: int
    added: int
    correction: Weight | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. ``mixed``: what makes query, key and value; ``spans``: of the one that makes all three."""

    mixed: Mapping[str, Part]
    spans: Spans | None
    sinks: Weight | None
    out: Linear
    mlp: Mlp

    def placed(self, number: int) -> Iterator[tuple[Place, Part]]:
        for role, part in self.mixed.items():
            yield Place(role, number), part
        yield Place("attention output", number), Part(self.out)
        for role, expert, part in self.mlp.parts:
            yield Place(role, number, expert=expert), part

    @property
    def added(self) -> int:
        """What the layer adds to the residual stream."""
        return self.out.bit | self.mlp.added

    @property
    def projected(self) -> int:
        return bits(self.mixed.values())

    def norms(self, number: int) -> Iterator[tuple[Place, int]]:
        """Norms of what a part gives, and the bits of that part."""
        yield Place("attention output norm", number), self.out.bit
        yield Place("mlp output norm", number), self.mlp.added
        if self.spans is None and len({part.linear.bit for part in self.mixed.values()}) == len(OPERANDS):
            for role in ("query", "key"):
                yield Place(f"{role} norm", number), self.mixed[role].linear.bit


def bits(parts: Iterable[Part]) -> int:
    mask = 0
    for part in parts:
        mask |= part.linear.bit
    return mask
