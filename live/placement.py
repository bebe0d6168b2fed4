"""Who holds which part of a model in memory: ranks, and boxes of tensors on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import LayoutError, UsageError
from ..tensors.boxes import Shape
from ..tensors.layout import Layout

#: whose names a rank's tensors have; Hugging Face's count layers and experts of the whole model
Names = Literal["megatron", "hf"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which rank holds what: a layout, and the ranks that play its parts.

    ``ranks`` are ranks of the process group in megatron-core's order: tensor parallel fastest, then
    expert and data parallel, then pipeline stages. When there are d times as many as the layout has,
    each part is held d times (data parallel). ``names="hf"`` with ``Layout()`` is whole tensors with
    Hugging Face names on every rank; with a tensor-parallel size each rank holds its heads, its rows of
    gate and up and so on, which is how inference engines cut them.
    """

    layout: Layout
    ranks: tuple[int, ...]
    names: Names = "megatron"
    padded_vocab_size: int | None = None

    def check(self, world_size: int, what: str) -> None:
        """Raise LayoutError or UsageError unless the ranks exist, once each, and fit the layout."""
        wanted = self.layout.world_size
        if len(set(self.ranks)) != len(self.ranks) or not all(0 <= r < world_size for r in self.ranks):
            raise UsageError(f"{what} ranks {list(self.ranks)} are not distinct ranks of {world_size}")
        if not self.ranks or len(self.ranks) % wanted:
            raise LayoutError(
                f"the {what} layout {self.layout} takes {wanted} ranks or a multiple of that, "
                f"{len(self.ranks)} are given",
                hint=f"say which take part with {what}_ranks",
            )
        if self.names == "hf" and self.layout.virtual_pipeline_parallel_size > 1:
            raise LayoutError("tensors with Hugging Face names have no virtual pipeline stages")

    def holders(self, stage: int, tensor: int | None, expert: int | None) -> tuple[int, ...]:
        """The ranks of a pipeline stage with this tensor-parallel rank (None: any). ``expert`` is the
        expert-parallel rank for a routed expert, whose tensor-parallel ranks are the experts' own."""
        layout = self.layout
        size = len(self.ranks) // layout.pipeline_parallel_size
        ways = layout.tensor_parallel_size if expert is None else layout.tensor_parallel_size_of_experts
        found = []
        for within in range(size):
            if tensor is not None and within % ways != tensor:
                continue
            if expert is not None and within // ways % layout.expert_parallel_size != expert:
                continue
            found.append(self.ranks[stage * size + within])
        return tuple(found)


class Local(NamedTuple):
    """A tensor that a rank holds: its name and shape there, and which model chunk (virtual pipeline
    stage) it belongs to. ``also`` are other names it may have."""

    name: str
    chunk: int
    shape: Shape
    also: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[int, str]:
        return self.chunk, self.name


class PlacedBox(NamedTuple):
    """A box of a logical tensor and where it lies in a local tensor that each of ``ranks`` holds.

    ``start`` and ``shape`` are in the rule's factors; ``offset`` and ``strides`` count elements of the
    local tensor in C order.
    """

    ranks: tuple[int, ...]
    local: Local
    start: Shape
    shape: Shape
    offset: int
    strides: Shape

    def at(self, low: Shape) -> int:
        """The element of the local tensor where a box inside this one begins."""
        return self.offset + sum(
            (a - b) * step for a, b, step in zip(low, self.start, self.strides, strict=True)
        )
