"""Tiles for jobs that turn a matrix in their target: near to square, so that neither side is taken in crumbs.

A tile of whole rows of one side is made of single elements of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

from ..tensors.boxes import Shape
from ..tensors.stored import Extent
from .plan import Job, Target

#: elements of a tile that follow one another in the target, where it has room for many in the source too
RUN = 8192


def turns_in_target(job: Job) -> bool:
    """Whether the target's bytes vary fastest along another factor than the job's last, unlike the source's.

    The other way round, where the source is turned, is :func:`nemoconv.resharding.tiles.tile_groups`'.
    """
    if not job.sources or not job.targets or 0 in job.shape:
        return False
    source, target = _fastest_first(job.sources[0]), _fastest_first(job.targets[0])
    return bool(source and target) and target[0] != source[0] and target[0] != len(job.shape) - 1


def square_tiles(job: Job, limit: int) -> Iterator[tuple[Shape, Shape]]:
    """Boxes of at most ``limit`` elements that cover the job, in the order of the target's bytes.

    Each takes up to :data:`RUN` elements of the factors that vary fastest in the target, and fills the rest
    of its room with those that vary fastest in the source.
    """
    source, target = _fastest_first(job.sources[0]), _fastest_first(job.targets[0])
    step = [1] * len(job.shape)
    _grow(step, target, job.shape, max(1, min(RUN, limit // 2)))
    _grow(step, source, job.shape, limit)
    order = [factor for factor in range(len(step)) if factor not in target] + target[::-1]
    for firsts in product(*(range(0, job.shape[factor], step[factor]) for factor in order)):
        at = dict(zip(order, firsts, strict=True))
        start = tuple(at[factor] for factor in range(len(step)))
        yield start, tuple(min(n, size - a) for n, size, a in zip(step, job.shape, start, strict=True))


def _fastest_first(box: Extent | Target) -> list[int]:
    """The factors of a box, by how far apart its neighbours along them lie in the file."""
    moving = [factor for factor, size in enumerate(box.shape) if size > 1]
    return sorted(moving, key=lambda factor: box.strides[factor])


def _grow(step: list[int], factors: list[int], shape: Shape, limit: int) -> None:
    """Lengthen a tile along ``factors`` in turn, while it has at most ``limit`` elements."""
    for factor in factors:
        others = prod(step) // step[factor]
        step[factor] = max(step[factor], min(shape[factor], limit // others))
        if step[factor] < shape[factor]:
            return
