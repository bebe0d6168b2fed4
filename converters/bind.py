"""Bind a table to tensors: the places of both sides in the coordinates of each rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import CorruptCheckpoint, MappingError, some
from ..mappings.space import Space
from ..mappings.table import Instance, Part, Rule, Sizes, Table, holes
from ..tensors.boxes import Shape, intersect, narrow
from ..tensors.dtypes import DType
from ..tensors.layout import Layout
from ..tensors.stored import Extent, StoredTensor
from .base import Checkpoint, Model, Request, Side
from .joining import Joiner
from .step import Step
from .steps import steps_of


@dataclass(frozen=True, slots=True)
class Member:
    """A tensor of one side that belongs to a rule's instance."""

    name: str
    part: Part | None
    shape: Shape
    start: Shape
    box: Shape


#: what :func:`members` and :func:`wanted` remember of a rule, whose layers and experts have it in common
Memory = dict[tuple[int, Side], list[tuple[Part | None, str, Shape, Shape, Shape]]]


def members(instance: Instance, side: Side, sizes: Sizes, memory: Memory | None = None) -> list[Member]:
    """The tensors of ``side`` that make up an instance, under their first names.

    ``memory`` may be shared by calls with the same ``sizes``.
    """
    rule, index = instance.rule, instance.index
    if side == "hf" and not instance.in_hf:
        return []
    known = None if memory is None else memory.get((id(rule), side))
    if known is None:
        known = list(_shapes(rule, side, sizes))
        if memory is not None:
            memory[id(rule), side] = known
    found = []
    for part, name, shape, start, box in known:
        if part is not None and part.window:  # which may depend on the expert
            start, box = part.slice(sizes, index)
        found.append(Member(name.format_map(index), part, shape, start, box))
    return found


def _shapes(rule: Rule, side: Side, sizes: Sizes) -> Iterator[tuple[Part | None, str, Shape, Shape, Shape]]:
    """(part, name with holes, shape, start, shape of the part) of each tensor of a rule."""
    for part in rule.parts if side == "hf" else (None,):
        shape = rule.view.shape(sizes) if part is None else part.shape(sizes)
        yield part, rule.nemo if part is None else part.hf, shape, (0,) * len(shape), shape


class Bound:
    """A checkpoint bound to its table: every tensor has its rule, every rule its tensors.

    Raises MappingError that lists what is left over or missing, CorruptCheckpoint for shapes that
    contradict the config. ``partial``: a checkpoint with Megatron's names may lack some of them, whose
    instances are then left out (optimizer state of parameters that were not trained).
    """

    def __init__(self, checkpoint: Checkpoint, model: Model, *, partial: bool = False) -> None:
        self.checkpoint, self.model, self._partial = checkpoint, model, partial
        self.names = set(checkpoint.keys())
        self._spelled = self._other_spellings()
        self.sizes = model.table.sizes(model.config)
        if checkpoint.side == "nemo":
            self.sizes["vocab"] = self._stored_vocab()
        self._spaces: dict[int, Space] = {}
        self._memory: Memory = {}
        self.steps = steps_of(model.table)
        self._claimed: dict[Step, list[tuple[str, str | None]]] = {}
        self.instances = instances = list(model.table.instances(model.config, self.sizes))
        # the list itself: a method of ours would make a cycle, which outlives every plan
        self._joiner = Joiner(checkpoint.path, model, self.sizes, checkpoint.layout, lambda: instances)
        self._renamed: dict[str, str] = {}
        self._check_names()

    def _other_spellings(self) -> dict[str, str]:
        """Names of the table by which Hugging Face files may call tensors otherwise -> names in this one."""
        table = self.model.table
        if self.checkpoint.side != "hf" or not table.spellings:
            return {}
        meant = {table.spelled(name): name for name in sorted(self.names)}
        return {name: stored for name, stored in meant.items() if name not in self.names}

    def _stored_vocab(self) -> int:
        """Rows of the stored embedding: the true vocabulary and its padding."""
        for rule in self.model.table.rules:
            for name in (rule.nemo, *rule.other_names):
                if rule.pad and name in self.names:
                    rows = sum(sum(piece.stored.shape[:1]) for piece in self.checkpoint.pieces(name))
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
            for member in members(instance, self.checkpoint.side, self.sizes, self._memory):
                name = self._find(member, instance)
                if name is None and instance.rule.never_read and not instance.in_hf:
                    continue
                if name is None:
                    missing.append(member.name)
                else:
                    used.add(name)
                    self._renamed[member.name] = name
        derived = _ignored_names(self.model.table, self.sizes["layers"])
        left = [
            name for name in sorted(self.names - used) if not {name, self.model.table.spelled(name)} & derived
        ]
        for step in self.steps:
            claimed = step.claim(self, left)
            left = [name for name in left if name not in claimed]
            self._claimed[step] = list(claimed.items())
            self._renamed |= {name: name for name, original in claimed.items() if original is not None}
        table = self.model.table.architecture
        if left:
            hints = (step.explain(self, left) for step in self.steps)
            raise MappingError(
                f"{self.checkpoint.path}: {len(left)} tensors have no rule in the {table!r} table: "
                f"{some(left)}",
                hint=next(
                    filter(None, hints),
                    "if the config is right, this model has parts that the table does not describe",
                ),
            )
        if missing and self._partial:
            self.instances = [i for i in self.instances if i.nemo in self._renamed]
        elif missing:
            raise MappingError(
                f"{self.checkpoint.path}: {len(missing)} tensors that {table!r} needs are missing: "
                f"{some(missing)}",
                hint="the checkpoint is incomplete or its config describes another model",
            )

    def _find(self, member: Member, instance: Instance) -> str | None:
        if member.name in self.names:
            return member.name
        if member.part is None:
            for other in instance.rule.other_names:
                name = other.format(**instance.index)
                if name in self.names:
                    return name
        return self._spelled.get(member.name)

    def stored_name(self, name: str) -> str:
        """The name under which the checkpoint holds a tensor that a rule calls ``name``."""
        return self._renamed[name]

    def held_as(self, name: str) -> str | None:
        """The same; None where it holds none."""
        return self._renamed.get(name)

    def spelled(self, name: str) -> str:
        """What the checkpoint calls a tensor that belongs to no rule."""
        return self._spelled.get(name, name)

    def claimed(self, step: Step) -> Sequence[tuple[str, str | None]]:
        """What a step of the table claimed: (tensor, its original, None for what is left out)."""
        return self._claimed.get(step, ())

    def repeated(self, step: Step) -> list[tuple[StoredTensor, StoredTensor]]:
        """(tensor, the one that it must be equal to) of what a step claimed."""
        pairs = [(copy, original) for copy, original in self.claimed(step) if original is not None]
        return [(self.stored(copy), self.stored(original)) for copy, original in pairs]

    def stored(self, name: str, rule: Rule | None = None) -> StoredTensor:
        """The whole of a tensor that the checkpoint calls ``name``, joined where ranks hold it."""
        pieces = self.checkpoint.pieces(name)
        return self._joiner.stored(pieces, rule or (self._joiner.rule(name) if self._joins else None))

    @property
    def _joins(self) -> bool:
        return self.checkpoint.cut or self.model.storage.in_blocks

    def keep_shifted(self) -> None:
        """Take tensors that are kept with 1 added as they are, for a target that says so, too."""
        self._joiner.shifted = frozenset()

    @property
    def shifted(self) -> frozenset[str]:
        """Names of tensors that 1 is taken off."""
        return self._joiner.shifted

    def replicas(self) -> Iterator[tuple[StoredTensor, StoredTensor]]:
        """What every tensor-parallel rank holds whole (norms, biases): (another rank's, the first one's)."""
        for instance in self.instances if self.checkpoint.cut else ():
            name = self._renamed.get(instance.nemo)
            if instance.rule.cut is None and name is not None:
                first, *others = self.checkpoint.pieces(name)
                for other in others:
                    yield other.stored, first.stored

    def space(self, rule: Rule, sizes: Sizes) -> Space:
        """The rule's space, wide enough for both sides."""
        found = self._spaces.get(id(rule))
        if found is None:
            found = self._spaces[id(rule)] = Space(rule, sizes)
        return found

    def dtype(self, instance: Instance) -> DType:
        """The element type of an instance's tensors. Raises MappingError when they differ."""
        if self.lacks(instance):
            return self.usual_dtype()
        found = {
            self.checkpoint.dtype(self._renamed[m.name])
            for m in members(instance, self.checkpoint.side, self.sizes, self._memory)
        }
        if len(found) > 1:
            names = [m.name for m in members(instance, self.checkpoint.side, self.sizes, self._memory)]
            raise MappingError(
                f"{self.checkpoint.path}: {some(names)} have different dtypes: "
                f"{some(sorted(map(str, found)))}",
                hint="convert them to one dtype first",
            )
        return found.pop()

    def lacks(self, instance: Instance) -> bool:
        """Whether the checkpoint has nothing of an instance, and need not: it is written as zeros."""
        if instance.in_hf:
            return False
        return self.checkpoint.side == "hf" or (
            instance.rule.never_read and instance.nemo not in self._renamed
        )

    def leave_out_never_read(self) -> None:
        """Forget what Hugging Face lacks and Megatron never reads, for a target without a place for it."""
        self.instances = [i for i in self.instances if i.in_hf or not i.rule.never_read]

    def usual_dtype(self) -> DType:
        """The element type that most tensors have."""
        found: dict[DType, int] = {}
        for name in self.names:
            dtype = self.checkpoint.dtype(name)
            found[dtype] = found.get(dtype, 0) + 1
        return max(found, key=lambda dtype: (found[dtype], dtype.name))

    def extents(self, instance: Instance, space: Space) -> tuple[Extent, ...]:
        """Where the instance's bytes lie, in the rule's space."""
        found: list[Extent] = []
        if self.lacks(instance):
            return ()
        for member in members(instance, self.checkpoint.side, self.sizes, self._memory):
            tensor = self.stored(self._renamed[member.name], instance.rule)
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
class Reservation:
    """A box that a writer must reserve, and the slice of it that belongs to an instance's part."""

    request: Request
    part: Part | None
    start: Shape
    box: Shape


class Reservations:
    """What a writer of ``side`` must reserve, for the instances of one model in one layout."""

    def __init__(self, side: Side, sizes: Sizes, layout: Layout, model: Model) -> None:
        self._side, self._sizes, self._layout = side, sizes, layout
        self._copies: dict[str, list[str]] = {}
        for step in steps_of(model.table):
            for original, copies in step.again(model.config, side).items():
                self._copies.setdefault(original, []).extend(copies)
        self._memory: Memory = {}
        #: of a rule: the shape of its tensor, and (tensor-parallel rank, start, shape) of each box
        self._boxes: dict[int, tuple[Shape, list[tuple[int, Shape, Shape]]]] = {}

    def copies(self, reserved: list[Reservation]) -> Iterator[list[Reservation]]:
        """What is to be reserved once more under other names, for what :meth:`of` gave."""
        found: dict[str, list[Reservation]] = {}
        for each in reserved if self._copies else ():
            for name in self._copies.get(each.request.name, ()):
                found.setdefault(name, []).append(replace(each, request=replace(each.request, name=name)))
        yield from found.values()

    def of(self, instance: Instance, dtype: DType) -> list[Reservation]:
        """What must be reserved for an instance.

        Instances that share a stored tensor (stacked experts, fused q, k and v) give equal requests.
        """
        if self._side == "hf":
            return [
                Reservation(
                    Request(m.name, dtype, m.shape, (0,) * len(m.shape), m.shape), m.part, m.start, m.box
                )
                for m in members(instance, "hf", self._sizes, self._memory)
            ]
        layout, rule = self._layout, instance.rule
        if id(rule) not in self._boxes:
            boxes = list(rule.fragments(self._sizes, layout))
            self._boxes[id(rule)] = rule.view.shape(self._sizes), boxes
        shape, boxes = self._boxes[id(rule)]
        stage = layout.stage(instance.layer, self._sizes["layers"])
        expert = instance.index.get("expert")
        owner = 0 if expert is None else layout.expert_rank(expert, self._sizes["experts"])
        name = instance.nemo
        return [
            Reservation(
                Request(name, dtype, shape, start, box, layout.rank(rank, stage, owner)), None, start, box
            )
            for rank, start, box in boxes
        ]
