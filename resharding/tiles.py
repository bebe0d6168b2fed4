"""Jobs cut into tiles: boxes small enough to stay in the processor's cache, in the order to take them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import isqrt

from ..tensors.boxes import Shape
from ..tensors.stored import Extent
from .plan import Job
from .transposed import square_tiles, turns_in_target

#: start and shape, in elements
Box = tuple[Shape, Shape]


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

    Where the source is a transposed matrix, tiles are nearer to square, so that there are lines worth
    reading and runs worth writing; a group then is as many rows as one tile has, so that its runs join up.
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
