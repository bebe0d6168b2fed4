"""The coordinates of a rule, in which tensors of either side are boxes."""

from __future__ import annotations

from collections.abc import Iterator

from ..tensors.boxes import Shape, open_extent
from ..tensors.stored import Extent
from .table import Part, Rule, Sizes

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
