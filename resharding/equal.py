"""Whether stored tensors are equal bit for bit, and where not, in constant memory."""

from __future__ import annotations

from typing import Any

import numpy

from ..tensors.boxes import Shape, intersect
from ..tensors.read import read_box
from ..tensors.stored import StoredTensor
from .tiles import tiles

_TILE_NBYTES = 4 << 20


def first_difference(a: StoredTensor, b: StoredTensor, axes: str = "") -> str | None:
    """Where two tensors of the same shape and type first differ, None when they are equal bit for bit."""
    limit = max(1, _TILE_NBYTES // a.dtype.itemsize)
    for start, shape in tiles((0,) * len(a.shape), a.shape, limit):
        x, y = (_bits(tensor, start, shape) for tensor in (a, b))
        if numpy.array_equal(x, y):
            continue
        at = tuple(int(axis[0]) for axis in numpy.nonzero(x != y))
        index = tuple(p + q for p, q in zip(at, start, strict=True))
        kind = a.dtype.numpy()
        values = x[at].view(kind), y[at].view(kind)
        named = f" ({axes})" if axes else ""
        count = int(numpy.count_nonzero(x != y))
        return (
            f"at {list(index)}{named} one holds {values[0]} (bits {x[at]:#x}), the other {values[1]} "
            f"(bits {y[at]:#x}); {count:,} of the next {x.size:,} elements differ"
        )
    return None


def first_nonzero(tensor: StoredTensor) -> list[int] | None:
    """The index of the first element that is not zero, None when all are (-0.0 counts as zero)."""
    limit = max(1, _TILE_NBYTES // tensor.dtype.itemsize)
    for start, shape in tiles((0,) * len(tensor.shape), tensor.shape, limit):
        found = numpy.argwhere(read_box(tensor, start, shape) != 0)
        if len(found):
            return [int(p) + q for p, q in zip(found[0], start, strict=True)]
    return None


def _bits(tensor: StoredTensor, start: Shape, shape: Shape) -> Any:
    """A box as unsigned integers, so that NaN and -0.0 compare by their bits."""
    needed = [e for e in tensor.extents if intersect(e.start, e.shape, start, shape)]
    box = read_box(StoredTensor(tensor.name, tensor.dtype, tensor.shape, tuple(needed)), start, shape)
    return box.view(numpy.dtype(f"u{tensor.dtype.itemsize}"))
