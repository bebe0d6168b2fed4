"""The binder's half that reads: whole tensors out of what ranks hold.

A reader hands out pieces as the files have them (:class:`~nemoconv.converters.base.Piece`). Which box of the
whole a piece is, only the fragments of its rule tell, the same that a writer of ranks cuts by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from operator import add

from ..errors import CorruptCheckpoint
from ..mappings.table import GROUP, Instance, Rule, Sizes
from ..tensors.boxes import Shape, intersect, narrow
from ..tensors.layout import Layout
from ..tensors.stored import Extent, StoredTensor
from .base import Model, Piece


class Joiner:
    """Puts together the tensors of a model that is kept in ``layout``.

    ``sizes`` are those of the model's factors; how many rows a padded tensor has is told by its pieces.
    ``instances`` gives the rules' instances, when a rule is looked up by name.
    """

    def __init__(
        self,
        where: object,
        model: Model,
        sizes: Sizes,
        layout: Layout,
        instances: Callable[[], Iterable[Instance]],
    ) -> None:
        self._where, self._model, self._sizes = where, model, sizes
        self._layout, self._instances = layout, instances
        #: by rule, rows of padded tensors and number of ranks
        self._cuts: dict[tuple[int, int, int], Cut] = {}
        #: names of tensors that are kept with 1 added, which is taken off
        self.shifted = model.storage.shifted

    @cached_property
    def _rules(self) -> Mapping[str, Rule]:
        """By each name that the checkpoint may have for a tensor."""
        rules: dict[str, Rule] = {}
        for instance in self._instances():
            for template in (instance.rule.nemo, *instance.rule.other_names):
                rules[template.format(**instance.index)] = instance.rule
        table = self._model.table
        for copy, original in (*table.tied, *table.stored_twice):
            if original in rules:
                rules.setdefault(copy, rules[original])
        return rules

    def rule(self, name: str) -> Rule | None:
        """The rule of a tensor; None where the model has none of that name."""
        return self._rules.get(name)

    def shape(self, rule: Rule, rows: int) -> Shape:
        """Of a whole tensor, of which all pieces together have ``rows`` on the first axis."""
        return rule.view.shape(self._sizes_of(rule, rows))

    def stored(self, pieces: Sequence[Piece], rule: Rule | None) -> StoredTensor:
        """The whole of a tensor, as its table means it. What lies there whole needs no rule.

        Raises CorruptCheckpoint for pieces that do not belong together or have not the rule's shape.
        """
        first = pieces[0]
        if rule is not None and (first.rank is not None or self._in_blocks(rule)):
            tensor = self._join(first.name, self._by_rank(pieces), rule)
        else:
            assert first.rank is None
            tensor = first.stored
        if first.name not in self.shifted:
            return tensor
        from ..resharding.decode.norms import less_one

        return less_one(tensor)

    def _by_rank(self, pieces: Sequence[Piece]) -> list[StoredTensor]:
        """What each tensor-parallel rank holds."""
        where = f"{self._where}: {pieces[0].name}"
        size = self._layout.stage_size
        held = {(piece.rank or 0) % size: piece.stored for piece in pieces}
        for rank in range(1 if pieces[0].rank is None else self._layout.tensor_parallel_size):
            if rank not in held:
                raise CorruptCheckpoint(f"{where} is missing on tensor-parallel rank {rank}")
        if len({tensor.dtype for tensor in held.values()}) > 1:
            raise CorruptCheckpoint(f"{where} has different dtypes on different ranks")
        return [held[rank] for rank in sorted(held)]

    def _in_blocks(self, rule: Rule) -> bool:
        """Whether a rank's rows are in another order than the rule's."""
        return self._model.storage.in_blocks and rule.cut == GROUP and len(rule.parts) > 1

    def _join(self, name: str, held: list[StoredTensor], rule: Rule) -> StoredTensor:
        where = f"{self._where}: {name}"
        if self._in_blocks(rule):
            heads = self._sizes[GROUP] // len(held)
            held = [by_head(where, tensor, len(rule.parts), heads) for tensor in held]
        rows = sum(sum(tensor.shape[:1]) for tensor in held) if rule.pad else 0
        known = id(rule), rows, len(held)
        if known not in self._cuts:
            self._cuts[known] = cut_by(rule, self._sizes_of(rule, rows), len(held))
        return assemble(where, name, held, self._cuts[known])

    def _sizes_of(self, rule: Rule, rows: int) -> Sizes:
        return self._sizes if rule.pad is None else {**self._sizes, rule.pad: rows}


def by_head(where: str, piece: StoredTensor, kinds: int, heads: int) -> StoredTensor:
    """A rank's tensor with the rows of each head together, of one that has those of each kind together.

    [kinds * heads * channels, ...] -> [heads * kinds * channels, ...]. Raises CorruptCheckpoint where the
    rows are no such product.
    """
    rows, *rest = piece.shape
    if heads < 1 or rows % (kinds * heads):
        raise CorruptCheckpoint(f"{where} has {rows} rows, which are not {kinds} blocks of {heads} heads")
    channels = rows // (kinds * heads)
    box, extents = (channels, *rest), []
    for extent in piece.extents:
        for kind, head in product(range(kinds), range(heads)):
            first = ((kind * heads + head) * channels, *(0 for _ in rest))
            common = intersect(extent.start, extent.shape, first, box)
            if common:
                part = narrow(extent, *common)
                shift = ((head * kinds + kind) - (kind * heads + head)) * channels
                extents.append(part._replace(start=(part.start[0] + shift, *part.start[1:])))
    return StoredTensor(piece.name, piece.dtype, piece.shape, tuple(extents))


@dataclass(frozen=True, slots=True)
class Cut:
    """How a rule divides a tensor of ``shape`` between ranks.

    ``held`` is the shape of what each one has, and each of ``boxes`` a part of that: (rank, start in the
    rank's tensor, shape, how far it moves in the whole).
    """

    shape: Shape
    held: tuple[Shape, ...]
    boxes: tuple[tuple[int, Shape, Shape, Shape], ...]


def cut_by(rule: Rule, sizes: Sizes, count: int) -> Cut:
    """The cut of a rule's tensor between ``count`` ranks: a rank's tensor is its fragments one after another,
    along the axis that the rule cuts. Raises LayoutError where the rule cannot be cut so."""
    shape = rule.view.shape(sizes)
    axis = next((i for i, names in enumerate(rule.view.axes) if rule.cut in names), 0)
    ends = [0] * count
    boxes = []
    for rank, start, box in rule.fragments(sizes, Layout(count)):
        local = (*start[:axis], ends[rank], *start[axis + 1 :]) if shape else ()
        ends[rank] += box[axis] if shape else 1
        boxes.append((rank, local, box, tuple(a - b for a, b in zip(start, local, strict=True))))
    lengths = [end if rule.cut is not None else shape[axis] for end in ends] if shape else []
    held = tuple((*shape[:axis], length, *shape[axis + 1 :]) for length in lengths)
    return Cut(shape, held or ((),) * count, tuple(boxes))


def assemble(where: str, name: str, pieces: Sequence[StoredTensor], cut: Cut) -> StoredTensor:
    """The whole of a tensor from what the tensor-parallel ranks hold of it.

    Raises CorruptCheckpoint for a piece of another shape.
    """
    for rank, (piece, expected) in enumerate(zip(pieces, cut.held, strict=True)):
        if piece.shape != expected:
            raise CorruptCheckpoint(
                f"{where} has shape {list(piece.shape)} on tensor-parallel rank {rank} of {len(pieces)}, "
                f"the config asks for {list(expected)}"
            )
    extents: list[Extent] = []
    for rank, local, box, shift in cut.boxes:
        for extent in pieces[rank].extents:
            common = intersect(extent.start, extent.shape, local, box)
            if common:
                part = narrow(extent, *common)
                extents.append(part._replace(start=tuple(map(add, part.start, shift))))
    return StoredTensor(name, pieces[0].dtype, cut.shape, tuple(extents))
