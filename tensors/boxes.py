"""Boxes in index space, and views that open a stored axis into named factors.

A Megatron tensor packs several logical axes into one stored axis: ``linear_qkv`` holds, along its
rows, groups of query heads with their key and value head. A :class:`View` names those factors,
``"(group head head_dim) hidden"``, so that every mapping and every parallel cut is a box.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod

from .stored import Extent

Shape = tuple[int, ...]


def intersect(
    start: Shape, shape: Shape, other_start: Shape, other_shape: Shape
) -> tuple[Shape, Shape] | None:
    """The box common to two boxes as (start, shape), or None when they do not meet."""
    low, size = [], []
    for a, n, b, m in zip(start, shape, other_start, other_shape, strict=True):
        first = a if a > b else b
        last = a + n if a + n < b + m else b + m
        if last <= first:
            return None
        low.append(first)
        size.append(last - first)
    return tuple(low), tuple(size)


def open_range(first: int, last: int, sizes: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Boxes over ``sizes`` that hold, in order, the flat indices from ``first`` up to ``last``."""
    if len(sizes) <= 1:
        if last > first:
            yield (first,) * len(sizes), (last - first,) * len(sizes)
        return
    inner = prod(sizes[1:])
    if not inner:
        return
    head, head_rest = divmod(first, inner)
    tail, tail_rest = divmod(last, inner)
    if head == tail:
        for start, shape in open_range(head_rest, tail_rest, sizes[1:]):
            yield (head, *start), (1, *shape)
        return
    if head_rest:
        for start, shape in open_range(head_rest, inner, sizes[1:]):
            yield (head, *start), (1, *shape)
        head += 1
    if tail > head:
        yield (head,) + (0,) * (len(sizes) - 1), (tail - head, *sizes[1:])
    if tail_rest:
        for start, shape in open_range(0, tail_rest, sizes[1:]):
            yield (tail, *start), (1, *shape)


@dataclass(frozen=True, slots=True)
class View:
    """The factors of each stored axis, outermost first."""

    axes: tuple[tuple[str, ...], ...]

    @property
    def factors(self) -> tuple[str, ...]:
        return tuple(factor for axis in self.axes for factor in axis)

    def shape(self, sizes: Mapping[str, int]) -> Shape:
        """The stored shape when the factors have these sizes."""
        return tuple(prod(sizes[factor] for factor in axis) for axis in self.axes)

    def __str__(self) -> str:
        return " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in self.axes)


@cache
def view(spec: str) -> View:
    """Parse ``"(group head head_dim) hidden"``.

    Raises ValueError for unbalanced brackets or a factor that is named twice: a bug in a table.
    """
    axes: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for word in spec.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            if group is not None:
                raise ValueError(f"nested brackets in {spec!r}")
            group = []
        elif word == ")":
            if not group:
                raise ValueError(f"unbalanced or empty brackets in {spec!r}")
            axes.append(tuple(group))
            group = None
        elif group is not None:
            group.append(word)
        else:
            axes.append((word,))
    names = [factor for axis in axes for factor in axis]
    if group is not None or len(set(names)) != len(names):
        raise ValueError(f"unbalanced brackets or repeated factor in {spec!r}")
    return View(tuple(axes))


def open_extent(extent: Extent, axes: View, sizes: Mapping[str, int]) -> Iterator[Extent]:
    """``extent`` in the coordinates of the view's factors: one or more boxes with the same bytes."""
    choices = [
        list(open_range(start, start + length, tuple(sizes[factor] for factor in axis)))
        for axis, start, length in zip(axes.axes, extent.start, extent.shape, strict=True)
    ]
    for combination in product(*choices):
        offset = extent.offset
        start: list[int] = []
        shape: list[int] = []
        strides: list[int] = []
        for axis, (low, size), origin, step in zip(
            axes.axes, combination, extent.start, extent.strides, strict=True
        ):
            flat, unit = 0, step
            factor_strides = []
            for factor, position in zip(reversed(axis), reversed(low), strict=True):
                factor_strides.append(unit)
                flat += position * unit
                unit *= sizes[factor]
            offset += flat - origin * step
            start.extend(low)
            shape.extend(size)
            strides.extend(reversed(factor_strides))
        yield Extent(extent.file, offset, tuple(start), tuple(shape), tuple(strides))


def narrow(extent: Extent, start: Shape, shape: Shape) -> Extent:
    """The part of ``extent`` that holds the box (start, shape), which must lie inside it."""
    offset = extent.offset + sum(
        (a - b) * step for a, b, step in zip(start, extent.start, extent.strides, strict=True)
    )
    return Extent(extent.file, offset, start, shape, extent.strides)
