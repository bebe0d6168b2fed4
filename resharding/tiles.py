"""Jobs cut into tiles: boxes small enough to stay in the processor's cache, in the order to take them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import isqrt, prod

from ..tensors.boxes import Shape
from ..tensors.stored import Extent
from .plan import Job, Target

#: start and shape, in elements
Box = tuple[Shape, Shape]
#: elements of a tile that follow one another in the target, where it has room for many in the source too
RUN = 8192


def tiles(start: Shape, shape: Shape, limit: int) -> Iterator[Box]:
    """Cut a box into boxes of at most ``limit`` elements, in C order."""
    if 0 in shape:
        return
    axis, inner = len(shape) - 1, 1
    while axis > 0 and inner * shape[axis] <= limit:
        inner *= shape[axis]
        axis -= 1
    if not shape:
        yield (), ()
        return
    step = max(1, limit // inner)
    outer = [range(first, first + count) for first, count in zip(start[:axis], shape[:axis], strict=True)]
    last = start[axis] + shape[axis]
    for index in product(*outer):
        for first in range(start[axis], last, step):
            count = min(step, last - first)
            yield (*index, first, *start[axis + 1 :]), (*(1,) * axis, count, *shape[axis + 1 :])


def tile_groups(job: Job, limit: int) -> Iterator[list[Box]]:
    """The tiles of a job, in groups that should stay together.

    Where the job turns a matrix in its target, tiles are near to square (:func:`square_tiles`): one of whole
    rows of one side is made of single elements of the other. Where the source is a transposed matrix, tiles
    are nearer to square too, so that there are lines worth reading and runs worth writing; a group then is as
    many rows as one tile has, so that its runs join up.
    """
    start = (0,) * len(job.shape)
    if turns_in_target(job):
        for box in square_tiles(job, limit):
            yield [box]
        return
    if not any(_is_transposed(extent) for extent in job.sources):
        for box in tiles(start, job.shape, limit):
            yield [box]
        return
    last = job.shape[-1]
    width = min(last, limit, isqrt(8 * limit))  # a write costs more than a read of the same size
    for low, shape in tiles(start[:-1], job.shape[:-1], max(1, limit // width)):
        yield [((*low, first), (*shape, min(width, last - first))) for first in range(0, last, width)]


def _is_transposed(extent: Extent) -> bool:
    """Whether neighbours in the file are no neighbours along the last axis."""
    if not extent.shape:
        return False
    *outer, last = zip(extent.shape, extent.strides, strict=True)
    return last[0] > 1 and any(length > 1 and step < last[1] for length, step in outer)


def turns_in_target(job: Job) -> bool:
    """Whether the target's bytes vary fastest along another factor than the job's last, unlike the source's.

    The other way round, where the source is turned, is :func:`nemoconv.resharding.tiles.tile_groups`'.
    """
    if not job.sources or not job.targets or 0 in job.shape:
        return False
    source, target = _fastest_first(job.sources[0]), _fastest_first(job.targets[0])
    return bool(source and target) and target[0] != source[0] and target[0] != len(job.shape) - 1


def square_tiles(job: Job, limit: int) -> Iterator[Box]:
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
