"""What moves where when sharded tensors in memory change hands, as plain data that every rank can pickle.

A :class:`Placement` says which rank holds which part of a model. :func:`plan_reshard` puts two of them
through a table: each logical tensor becomes a :class:`Transfer`, the boxes that ranks hold before and
after in the coordinates of its rule, and where these boxes meet. Sizes count elements: element types
are the tensors' own and become known when they are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple

from nemoconv.errors import LayoutError, MappingError, UsageError
from nemoconv.formats.tensors import Extent, contiguous_strides
from nemoconv.mappings.config_fields import Value
from nemoconv.mappings.rules import padded_vocab_size
from nemoconv.mappings.space import Space
from nemoconv.mappings.table import FIELD_NAMES, Instance, Part, Rule, Sizes, Table, check_layout
from nemoconv.resharding.boxes import Shape, View, intersect
from nemoconv.resharding.layout import Layout

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


class Piece(NamedTuple):
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


#: (index of the source piece, index of the target piece, start and shape of what they share)
Overlap = tuple[int, int, Shape, Shape]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One logical tensor: who holds what before and after, and where the boxes meet."""

    name: str
    sources: tuple[Piece, ...]
    targets: tuple[Piece, ...]
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True, slots=True)
class LivePlan:
    """Everything that a change of placement moves. Made once, used every step, the same on all ranks.

    ``filled`` are the keys of local target tensors that also have elements without a source: rows that
    pad a vocabulary, biases that the other side leaves out. They become 0. ``zeros`` are source tensors
    that the target's names have no place for and that must therefore be 0. ``copies`` are names a rank
    may hold besides, as copies of what another rank sends (tied embeddings); ``ignored`` are templates of
    names that carry nothing.
    """

    source: Placement
    target: Placement
    world_size: int
    transfers: tuple[Transfer, ...]
    filled: frozenset[tuple[int, tuple[int, str]]]
    zeros: tuple[Piece, ...]
    copies: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    digest: int = field(default=0)

    def locals(self, rank: int, side: Literal["source", "target"]) -> dict[tuple[int, str], Local]:
        """The tensors that a rank gives or receives."""
        found: dict[tuple[int, str], Local] = {}
        for transfer in self.transfers:
            for piece in transfer.sources if side == "source" else transfer.targets:
                if rank in piece.ranks:
                    found.setdefault(piece.local.key, piece.local)
        if side == "source":
            for piece in self.zeros:
                if rank in piece.ranks:
                    found.setdefault(piece.local.key, piece.local)
        return found


def plan_reshard(
    table: Table,
    config: Mapping[str, Value],
    source: Placement,
    target: Placement,
    *,
    world_size: int,
) -> LivePlan:
    """Plan a change of placement; ``config`` is the model config in Megatron's names.

    Needs no process group and no tensors. Raises LayoutError, MappingError, UsageError.
    """
    base = table.sizes(config)
    for placement, what in ((source, "source"), (target, "target")):
        placement.check(world_size, what)
    before, after = (_sizes(base, placement) for placement in (source, target))
    check_layout(table, config, before, source.layout)
    check_layout(table, config, after, target.layout)
    wide = {**base, "vocab": max(before["vocab"], after["vocab"])}
    sides = (
        _Side(table, config, source, before, wide, receives=False),
        _Side(table, config, target, after, wide, receives=True),
    )
    pieces = [side.pieces() for side in sides]
    transfers: list[Transfer] = []
    filled: set[tuple[int, tuple[int, str]]] = set()
    zeros: list[Piece] = []
    known: dict[tuple[object, ...], tuple[Overlap, ...]] = {}
    for number, instance in enumerate(sides[0].instances):
        given, wanted = pieces[0][number], pieces[1][number]
        key = (tuple((p.start, p.shape) for p in given), tuple((p.start, p.shape) for p in wanted))
        overlaps = known.get(key)
        if overlaps is None:
            overlaps = known[key] = _meet(given, wanted)
        loose = instance.rule.pad is not None or not instance.in_hf
        gaps = _uncovered(wanted, overlaps)
        if (gaps or _left_over(given, overlaps)) and not loose:
            raise MappingError(f"{instance.nemo}: the two placements hold different parts of it")
        for j in gaps:
            filled.update((rank, wanted[j].local.key) for rank in wanted[j].ranks)
        if not wanted:
            zeros.extend(given)
            continue
        transfers.append(Transfer(instance.nemo, given, wanted, overlaps))
    copies = tuple(copy for copy, _ in table.tied)
    text = repr((table.architecture, sorted(wide.items()), source, target, world_size))
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
    return LivePlan(
        source,
        target,
        world_size,
        tuple(transfers),
        frozenset(filled),
        tuple(zeros),
        copies,
        table.ignored,
        digest,
    )


def _sizes(base: Mapping[str, int], placement: Placement) -> dict[str, int]:
    """Sizes of one side's tensors: Megatron's vocabulary is padded so that all ranks hold equally many."""
    true, padded = base["true_vocab"], placement.padded_vocab_size
    ways = placement.layout.tensor_parallel_size
    if padded is None:
        padded = padded_vocab_size(true, None, ways)
    if padded < true or padded % ways:
        raise LayoutError(
            f"padded_vocab_size={padded:,} must be at least vocab_size={true:,} and a multiple of "
            f"tensor_parallel_size={ways}"
        )
    return {**base, "vocab": padded}


def _meet(given: Sequence[Piece], wanted: Sequence[Piece]) -> tuple[Overlap, ...]:
    found = []
    for j, target in enumerate(wanted):
        for i, source in enumerate(given):
            common = intersect(source.start, source.shape, target.start, target.shape)
            if common is not None:
                found.append((i, j, *common))
    return tuple(found)


def _uncovered(wanted: Sequence[Piece], overlaps: Iterable[Overlap]) -> list[int]:
    """Target pieces some of whose elements have no source."""
    missing = [prod(piece.shape) for piece in wanted]
    for _, j, _, shape in overlaps:
        missing[j] -= prod(shape)
    return [j for j, count in enumerate(missing) if count]


def _left_over(given: Sequence[Piece], overlaps: Iterable[Overlap]) -> bool:
    """Whether source elements have no target. A tied embedding's copy gives each element two."""
    used: dict[int, set[tuple[Shape, Shape]]] = {}
    for i, _, low, shape in overlaps:
        used.setdefault(i, set()).add((low, shape))
    return any(
        sum(prod(shape) for _, shape in used.get(i, ())) < prod(piece.shape) for i, piece in enumerate(given)
    )


class _Box(NamedTuple):
    """A box of a stored tensor that some ranks hold, before its place in their local tensor is known."""

    ranks: tuple[int, ...]
    holder: tuple[object, ...]
    start: Shape
    shape: Shape
    part: Part | None
    inside: Shape


class _Side:
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

    def pieces(self) -> list[tuple[Piece, ...]]:
        boxes = [list(self._boxes(instance)) for instance in self.instances]
        grids: dict[tuple[object, ...], _Grid] = {}
        for found in boxes:
            for box in found:
                grids.setdefault(box.holder, _Grid()).add(box.start, box.shape)
        locals_ = {holder: self._local(holder, grid) for holder, grid in grids.items()}
        result = []
        for instance, found in zip(self.instances, boxes, strict=True):
            space = self._space(instance.rule)
            pieces: list[Piece] = []
            for box in found:
                local, grid = locals_[box.holder], grids[box.holder]
                strides = contiguous_strides(local.shape, 1)
                offset = sum(a * n for a, n in zip(grid.position(box.start), strides, strict=True))
                extent = Extent(None, offset, box.inside, box.shape, strides)  # type: ignore[arg-type]
                for _, place, low, shape, steps in space.place(box.part, self.sizes, extent):
                    pieces.append(Piece(box.ranks, local, low, shape, place, steps))
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
        name, chunk, also = holder[0], holder[1], holder[2]
        shape = grid.close(str(name))
        return Local(str(name), chunk, shape, also)  # type: ignore[arg-type]

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
        also = tuple(other.format(**index) for other in rule.also)
        places = [(stage, chunk, name, also)]
        last = layout.run(layers, layers)
        for copy, original in self.table.tied:
            # the last stage computes logits with a copy of the embedding that the first one has
            if self._receives and rule.nemo == original and last > 0 and self._is_tied(copy):
                end = layout.stage(layers, layers), layout.virtual_stage(layers, layers)
                places.append((*end, copy, ()))
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
