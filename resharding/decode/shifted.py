"""Tensors that a format keeps with a constant added, as they are without it."""

from __future__ import annotations

import numpy

from ...stores.memory_file import MemoryFile
from ...tensors.read import read_box
from ...tensors.stored import Extent, StoredTensor, contiguous_strides


def less_one(tensor: StoredTensor) -> StoredTensor:
    """``tensor`` less 1, taken in float32 (float64 for itself) and rounded once to its own type.

    For vectors such as a norm's weights: the result is kept in memory.
    """
    stored = read_box(tensor, (0,) * len(tensor.shape), tensor.shape)
    wide = stored.astype(numpy.promote_types(numpy.float32, stored.dtype))
    with numpy.errstate(invalid="ignore"):  # signalling NaNs
        data = (wide - 1).astype(stored.dtype).tobytes()
    whole = tensor.extents[0].file
    strides = contiguous_strides(tensor.shape, tensor.dtype.itemsize)
    extent = Extent(MemoryFile(whole, tensor.name, data), 0, (0,) * len(tensor.shape), tensor.shape, strides)
    return StoredTensor(tensor.name, tensor.dtype, tensor.shape, (extent,))
