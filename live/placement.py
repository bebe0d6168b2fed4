"""Who holds which part of a model in memory: ranks, and boxes of tensors on them.

A :class:`Placement` is what the caller says; :class:`Side` works out from it which box of every logical
tensor lies where, on which ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from ..errors import LayoutError, MappingError, UsageError
from ..mappings.hf.fields import Value
from ..mappings.space import Space
from ..mappings.table import FIELD_NAMES, Instance, Part, Rule, Sizes, Table
from ..tensors.boxes import Shape, View
from ..tensors.layout import Layout
from ..tensors.stored import Extent, contiguous_strides

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


def placements(
    source: Layout,
    target: Layout,
    world_size: int,
    *,
    source_ranks: Sequence[int] | None = None,
    target_ranks: Sequence[int] | None = None,
    source_names: Names = "megatron",
    target_names: Names = "megatron",
    source_padded_vocab_size: int | None = None,
    target_padded_vocab_size: int | None = None,
) -> tuple[Placement, Placement]:
    """Source and target placement in a group of ``world_size`` ranks; all of them take part unless told."""
    everyone = tuple(range(world_size))
    return (
        Placement(
            source,
            everyone if source_ranks is None else tuple(source_ranks),
            source_names,
            source_padded_vocab_size,
        ),
        Placement(
            target,
            everyone if target_ranks is None else tuple(target_ranks),
            target_names,
            target_padded_vocab_size,
        ),
    )


class Local(NamedTuple):
    """A tensor that a rank holds: its name and shape there, and which model chunk (virtual pipeline
    stage) it belongs to. ``other_names`` are other names it may have."""

    name: str
    chunk: int
    shape: Shape
    other_names: tuple[str, ...] = ()

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


class _Box(NamedTuple):
    """A box of a stored tensor that some ranks hold, before its place in their local tensor is known."""

    ranks: tuple[int, ...]
    holder: tuple[object, ...]
    start: Shape
    shape: Shape
    part: Part | None
    inside: Shape


class Side:
    """One placement of a model: the pieces of every instance of every rule."""

    def __init__(
        self,
        table: Table,
        config: Mapping[str, Value],
        placement: Placement,
        sizes: Sizes,
        wide: Sizes,
        *,
        receives: bool,
    ) -> None:
        self.table, self.config, self.placement, self.sizes = table, config, placement, sizes
        self.instances = list(table.instances(config, sizes))
        self._wide, self._receives = wide, receives
        self._spaces: dict[int, Space] = {}
        self._ranks: dict[tuple[int, int | None, int | None], tuple[int, ...]] = {}
        self._numbers = self._local_layers()

    def _local_layers(self) -> list[int]:
        """For each layer its number among those of its model chunk."""
        return [
            number
            for layers in self.placement.layout.layers(self.sizes["layers"])
            for number in range(len(layers))
        ]

    def pieces(self) -> list[tuple[PlacedBox, ...]]:
        boxes = [list(self._boxes(instance)) for instance in self.instances]
        grids: dict[tuple[object, ...], _Grid] = {}
        for found in boxes:
            for box in found:
                grids.setdefault(box.holder, _Grid()).add(box.start, box.shape)
        locals_ = {holder: self._local(holder, grid) for holder, grid in grids.items()}
        result = []
        for instance, found in zip(self.instances, boxes, strict=True):
            space = self._space(instance.rule)
            pieces: list[PlacedBox] = []
            for box in found:
                local, grid = locals_[box.holder], grids[box.holder]
                strides = contiguous_strides(local.shape, 1)
                offset = sum(a * n for a, n in zip(grid.position(box.start), strides, strict=True))
                extent = Extent(None, offset, box.inside, box.shape, strides)  # type: ignore[arg-type]
                for _, place, low, shape, steps in space.place(box.part, self.sizes, extent):
                    pieces.append(PlacedBox(box.ranks, local, low, shape, place, steps))
            result.append(tuple(pieces))
        return result

    def _space(self, rule: Rule) -> Space:
        if id(rule) not in self._spaces:
            self._spaces[id(rule)] = Space(rule, self._wide)
        return self._spaces[id(rule)]

    def _holders(self, stage: int, tensor: int | None, expert: int | None) -> tuple[int, ...]:
        key = stage, tensor, expert
        if key not in self._ranks:
            self._ranks[key] = self.placement.holders(stage, tensor, expert)
        return self._ranks[key]

    def _local(self, holder: tuple[object, ...], grid: _Grid) -> Local:
        name, chunk, other_names = holder[0], holder[1], holder[2]
        shape = grid.close(str(name))
        return Local(str(name), chunk, shape, other_names)  # type: ignore[arg-type]

    def _boxes(self, instance: Instance) -> Iterator[_Box]:
        layout, layers, rule = self.placement.layout, self.sizes["layers"], instance.rule
        stage = layout.stage(instance.layer, layers)
        chunk = layout.virtual_stage(instance.layer, layers)
        number = instance.index.get("expert")
        expert = None if number is None else layout.expert_rank(number, self.sizes["experts"])
        if self.placement.names == "hf":
            yield from self._hf_boxes(instance, stage, expert)
            return
        index = dict(instance.index)
        if "layer" in index:
            index["layer"] = self._numbers[index["layer"]]
        if number is not None:
            index["expert"] = number % (self.sizes["experts"] // layout.expert_parallel_size)
        name = rule.nemo.format(**index)
        other_names = tuple(other.format(**index) for other in rule.other_names)
        places = [(stage, chunk, name, other_names)]
        last = layout.run(layers, layers)
        for copy, original in self.table.tied:
            # the last stage computes logits with a copy of the embedding that the first one has
            if self._receives and rule.nemo == original and last > 0 and self._is_tied(copy):
                end = layout.stage(layers, layers), layout.virtual_stage(layers, layers)
                places.append((*end, copy, ()))
        if self._receives and last > 0 and rule.pad and instance.layer < 0 and self.sizes.get("depths"):
            # which also embeds the tokens that layers behind all others predict from
            places.append(
                (layout.stage(layers, layers), layout.virtual_stage(layers, layers), name, other_names)
            )
        for at, which, called, others in places:
            for tensor, start, shape in rule.fragments(self.sizes, layout):
                cut = None if rule.cut is None else tensor
                ranks = self._holders(at, cut, expert)
                holder = (called, which, others, at, cut, expert)
                yield _Box(ranks, holder, start, shape, None, start)

    def _is_tied(self, copy: str) -> bool:
        rules = [rule for rule in self.table.rules if rule.nemo == copy]
        return bool(rules) and not any(rule.applies(self.config) for rule in rules)

    def _hf_boxes(self, instance: Instance, stage: int, expert: int | None) -> Iterator[_Box]:
        rule = instance.rule
        for part in rule.parts if instance.in_hf else ():
            name = part.hf.format(**instance.index)
            window, _ = part.slice(self.sizes, instance.index)
            for tensor, inside, shape in _part_fragments(rule, part, self.sizes, self.placement.layout):
                start = tuple(a + b for a, b in zip(window, inside, strict=True))
                ranks = self._holders(stage, tensor, expert)
                holder = (name, 0, (), stage, tensor, expert)
                yield _Box(ranks, holder, start, shape, part, inside)


def _part_fragments(
    rule: Rule, part: Part, sizes: Sizes, layout: Layout
) -> Iterator[tuple[int | None, Shape, Shape]]:
    """(tensor-parallel rank, start, shape) of the boxes of a part that hold what each rank computes with."""
    local = part.sizes(sizes)
    shape = part.view.shape(local)
    zero = (0,) * len(shape)
    if rule.cut is None or layout == Layout():
        yield None, zero, shape
        return
    if rule.cut not in part.view.factors:
        raise LayoutError(
            f"{part.hf}: has no axis that tensor parallelism could cut",
            hint="ask for whole tensors: tensor_parallel_size=1",
        )
    axis, outer, inner = _around(part.view, rule.cut, local)
    first_held, held = part.bounds(sizes).get(rule.cut, (0, sizes[rule.cut]))
    plain = rule.cut.partition(".")[0]
    named = FIELD_NAMES.get(plain, plain)
    pieces = layout.pieces(sizes[rule.cut], named, part.hf, of_experts="expert" in rule.holes)
    for rank, (first, length) in enumerate(pieces):
        low = max(first, first_held) - first_held
        high = min(first + length, first_held + held) - first_held
        for position in range(outer if high > low else 0):
            start, box = list(zero), list(shape)
            start[axis] = (position * held + low) * inner
            box[axis] = (high - low) * inner
            yield rank, tuple(start), tuple(box)


def _around(axes: View, factor: str, sizes: Sizes) -> tuple[int, int, int]:
    """The stored axis of a factor, and how many positions lie outside and inside the factor there."""
    axis = next(i for i, names in enumerate(axes.axes) if factor in names)
    names = axes.axes[axis]
    at = names.index(factor)
    return axis, prod(sizes[n] for n in names[:at]), prod(sizes[n] for n in names[at + 1 :])


class _Grid:
    """Boxes of one tensor that a rank holds, pushed together: gate and up rows, runs of experts."""

    def __init__(self) -> None:
        self._boxes: list[tuple[Shape, Shape]] = []
        self._places: list[dict[int, int]] = []

    def add(self, start: Shape, shape: Shape) -> None:
        self._boxes.append((start, shape))

    def close(self, name: str) -> Shape:
        """The shape of the local tensor. Raises MappingError when the boxes form no grid."""
        result = []
        count = 1
        rank = len(self._boxes[0][0])
        for axis in range(rank):
            runs = sorted({(start[axis], shape[axis]) for start, shape in self._boxes})
            places: dict[int, int] = {}
            end = total = 0
            for first, length in runs:
                if first < end:
                    raise MappingError(f"{name}: a rank holds boxes of it that form no tensor")
                places[first] = total
                end, total = first + length, total + length
            self._places.append(places)
            result.append(total)
            count *= len(runs)
        if count != len(self._boxes):
            raise MappingError(f"{name}: a rank holds boxes of it that form no tensor")
        return tuple(result)

    def position(self, start: Shape) -> Shape:
        """Where a box begins in the local tensor."""
        return tuple(places[first] for places, first in zip(self._places, start, strict=True))
