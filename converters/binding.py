"""Bind a table to tensors: the places of both sides in the coordinates of each rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemoconv.converters.base import Checkpoint, Model, Request, Side
from nemoconv.errors import CorruptCheckpoint, MappingError, some
from nemoconv.formats.dtypes import DType
from nemoconv.formats.tensors import Extent
from nemoconv.mappings.table import Instance, Part, Rule, Sizes, Table, holes
from nemoconv.resharding.boxes import Shape, intersect, narrow, open_extent
from nemoconv.resharding.layout import Layout

_Geometry = list[tuple[int, Shape, Shape, Shape]]


class Space:
    """The coordinates of one rule: boxes of stored tensors of either side, as boxes of its factors.

    All layers of a model share the geometry, so it is computed once and then only shifted.
    """

    def __init__(self, rule: Rule, sizes: Sizes) -> None:
        self.rule = rule
        self.factors = rule.view.factors
        self.shape: Shape = tuple(sizes[factor] for factor in self.factors)
        self._cache: dict[tuple[object, ...], _Geometry] = {}

    def place(self, part: Part | None, sizes: Sizes, extent: Extent) -> Iterator[Extent]:
        """``extent`` of the Hugging Face tensor ``part`` (None: of the Megatron tensor) in this space."""
        key = (id(part), sizes["vocab"], extent.start, extent.shape, extent.strides)
        geometry = self._cache.get(key)
        if geometry is None:
            relative = extent._replace(offset=0)
            geometry = [tuple(e[1:]) for e in self._open(part, sizes, relative)]  # type: ignore[misc]
            self._cache[key] = geometry
        for offset, start, shape, strides in geometry:
            yield Extent(extent.file, extent.offset + offset, start, shape, strides)

    def _open(self, part: Part | None, sizes: Sizes, extent: Extent) -> Iterator[Extent]:
        if part is None:
            yield from open_extent(extent, self.rule.view, sizes)
            return
        bounds, local = part.bounds(sizes), part.sizes(sizes)
        position = {factor: i for i, factor in enumerate(part.view.factors)}
        for box in open_extent(extent, part.view, local):
            start, shape, strides = [], [], []
            for factor in self.factors:
                first, length = bounds.get(factor, (0, 0))
                if factor in position:
                    at = position[factor]
                    start.append(first + box.start[at])
                    shape.append(box.shape[at])
                    strides.append(box.strides[at])
                else:
                    start.append(first)
                    shape.append(length)
                    strides.append(0)
            yield Extent(box.file, box.offset, tuple(start), tuple(shape), tuple(strides))


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor of one side that belongs to a rule's instance."""

    name: str
    part: Part | None
    shape: Shape
    start: Shape
    box: Shape


def members(instance: Instance, side: Side, sizes: Sizes) -> list[Named]:
    """The tensors of ``side`` that make up an instance, under their first names."""
    rule, index = instance.rule, instance.index
    if side == "nemo":
        shape = rule.view.shape(sizes)
        return [Named(rule.nemo.format(**index), None, shape, (0,) * len(shape), shape)]
    found = []
    for part in rule.parts if instance.in_hf else ():
        shape = part.shape(sizes)
        start, box = part.slice(sizes, index) if part.window else ((0,) * len(shape), shape)
        found.append(Named(part.hf.format(**index), part, shape, start, box))
    return found


class Bound:
    """A checkpoint bound to its table: every tensor has its rule, every rule its tensors.

    Raises MappingError that lists what is left over or missing, CorruptCheckpoint for shapes that
    contradict the config.
    """

    def __init__(self, checkpoint: Checkpoint, model: Model) -> None:
        self.checkpoint, self.model = checkpoint, model
        self.names = set(checkpoint.keys())
        self.sizes = model.table.sizes(model.config)
        if checkpoint.side == "nemo":
            self.sizes["vocab"] = self._stored_vocab()
        self._spaces: dict[int, Space] = {}
        self.redundant: list[tuple[str, str]] = []
        self.instances = list(model.table.instances(model.config, self.sizes))
        self._renamed: dict[str, str] = {}
        self._check_names()

    def _stored_vocab(self) -> int:
        """Rows of the stored embedding: the true vocabulary and its padding."""
        for rule in self.model.table.rules:
            for name in (rule.nemo, *rule.also):
                if rule.pad and name in self.names:
                    rows = self.checkpoint.spec(name).shape[0]
                    if rows < self.sizes["true_vocab"]:
                        raise CorruptCheckpoint(
                            f"{self.checkpoint.path}: {name} has {rows:,} rows, "
                            f"but the config says vocab_size={self.sizes['true_vocab']:,}"
                        )
                    return rows
        return self.sizes["vocab"]

    def _check_names(self) -> None:
        used: set[str] = set()
        missing: list[str] = []
        for instance in self.instances:
            for member in members(instance, self.checkpoint.side, self.sizes):
                name = self._find(member, instance)
                if name is None:
                    missing.append(member.name)
                else:
                    used.add(name)
                    self._renamed[member.name] = name
        left = sorted(self.names - used)
        for copy, original in self.model.table.tied:
            if copy in left and original in used:
                left.remove(copy)
                self.redundant.append((copy, original))
        derived = _ignored_names(self.model.table, self.sizes["layers"])
        left = [name for name in left if name not in derived]
        table = self.model.table.architecture
        if left:
            raise MappingError(
                f"{self.checkpoint.path}: {len(left)} tensors have no rule in the {table!r} table: "
                f"{some(left)}",
                hint="if the config is right, this model has parts that the table does not describe",
            )
        if missing:
            raise MappingError(
                f"{self.checkpoint.path}: {len(missing)} tensors that {table!r} needs are missing: "
                f"{some(missing)}",
                hint="the checkpoint is incomplete or its config describes another model",
            )

    def _find(self, member: Named, instance: Instance) -> str | None:
        if member.name in self.names:
            return member.name
        if member.part is None:
            for other in instance.rule.also:
                name = other.format(**instance.index)
                if name in self.names:
                    return name
        return None

    def space(self, rule: Rule, sizes: Sizes) -> Space:
        """The rule's space, wide enough for both sides."""
        found = self._spaces.get(id(rule))
        if found is None:
            found = self._spaces[id(rule)] = Space(rule, sizes)
        return found

    def dtype(self, instance: Instance) -> DType:
        """The element type of an instance's tensors. Raises MappingError when they differ."""
        if not instance.in_hf and self.checkpoint.side == "hf":
            return self.usual_dtype()
        found = {
            self.checkpoint.spec(self._renamed[m.name]).dtype
            for m in members(instance, self.checkpoint.side, self.sizes)
        }
        if len(found) > 1:
            names = [m.name for m in members(instance, self.checkpoint.side, self.sizes)]
            raise MappingError(
                f"{self.checkpoint.path}: {some(names)} have different dtypes: "
                f"{some(sorted(map(str, found)))}",
                hint="convert them to one dtype first",
            )
        return found.pop()

    def usual_dtype(self) -> DType:
        """The element type that most tensors have."""
        found: dict[DType, int] = {}
        for name in self.names:
            dtype = self.checkpoint.spec(name).dtype
            found[dtype] = found.get(dtype, 0) + 1
        return max(found, key=lambda dtype: (found[dtype], dtype.name))

    def extents(self, instance: Instance, space: Space) -> tuple[Extent, ...]:
        """Where the instance's bytes lie, in the rule's space."""
        found: list[Extent] = []
        for member in members(instance, self.checkpoint.side, self.sizes):
            tensor = self.checkpoint.stored(self._renamed[member.name])
            if tensor.shape != member.shape:
                raise CorruptCheckpoint(
                    f"{self.checkpoint.path}: {tensor.name} has shape {list(tensor.shape)}, "
                    f"the config asks for {list(member.shape)}"
                )
            for extent in tensor.extents:
                held = extent if member.box == member.shape else cut(extent, member.start, member.box)
                if held is not None:
                    found.extend(space.place(member.part, self.sizes, held))
        return tuple(found)


def cut(extent: Extent, start: Shape, box: Shape) -> Extent | None:
    """The part of an extent inside a box of its tensor, in the box's coordinates; None if outside."""
    common = intersect(extent.start, extent.shape, start, box)
    if common is None:
        return None
    piece = narrow(extent, *common)
    return piece._replace(start=tuple(a - b for a, b in zip(piece.start, start, strict=True)))


def _ignored_names(table: Table, layers: int) -> set[str]:
    names: set[str] = set()
    for template in table.ignored:
        if holes(template):
            names.update(template.format(layer=layer) for layer in range(layers))
        else:
            names.add(template)
    return names


@dataclass(frozen=True, slots=True)
class Wanted:
    """A box that a writer must reserve, and the slice of it that belongs to an instance's part."""

    request: Request
    part: Part | None
    start: Shape
    box: Shape


def wanted(instance: Instance, side: Side, sizes: Sizes, layout: Layout, dtype: DType) -> list[Wanted]:
    """What a writer of ``side`` must reserve for an instance.

    Instances that share a stored tensor (stacked experts, fused q, k and v) give equal requests.
    """
    if side == "hf":
        return [
            Wanted(Request(m.name, dtype, m.shape, (0,) * len(m.shape), m.shape), m.part, m.start, m.box)
            for m in members(instance, "hf", sizes)
        ]
    stage = layout.stage(instance.layer, sizes["layers"])
    expert = instance.index.get("expert")
    owner = 0 if expert is None else layout.expert_rank(expert, sizes["experts"])
    name, shape = instance.nemo, instance.rule.view.shape(sizes)
    return [
        Wanted(
            Request(name, dtype, shape, start, box, layout.rank(rank, stage, owner)),
            None,
            start,
            box,
        )
        for rank, start, box in instance.rule.fragments(sizes, layout)
    ]
