"""Read a box of a stored tensor into memory."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy

from .boxes import Shape, intersect, narrow
from .stored import StoredTensor, contiguous_strides
from .strided import loops, read_strided


def read_box(tensor: StoredTensor, start: Shape, shape: Shape) -> numpy.ndarray[Any, Any]:
    """The box as a C-ordered array; only its bytes are read, up to short gaps."""
    itemsize = tensor.dtype.itemsize
    buffer = numpy.empty(prod(shape) * itemsize, numpy.uint8)
    scratch = numpy.empty(1 << 20, numpy.uint8)
    strides = contiguous_strides(shape, itemsize)
    for extent in tensor.extents:
        common = intersect(extent.start, extent.shape, start, shape)
        if common:
            piece = narrow(extent, *common)
            at = sum((a - b) * step for a, b, step in zip(common[0], start, strides, strict=True))
            axes = loops(common[1], piece.strides, strides)
            read_strided(piece.file, piece.offset, axes, itemsize, buffer[at:], scratch)
    return buffer.view(tensor.dtype.numpy()).reshape(shape)
