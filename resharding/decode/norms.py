"""Weights that one side normalizes or keeps with 1 added, as the other side has them.

The rows of a normalized head (Baichuan 2's ``NormHead``) are divided by their lengths whenever the model
runs; another system has only the plain kind, for which they are stored so. There is no way back: the lengths
are gone.

Some models multiply by 1 + weight. Megatron and exporters to ONNX may store that sum, from which the weight
cannot be had back in general: float32 rounds the sum. But a weight that was bfloat16 or float16 has few bits,
and often only one number of that type gives the stored sum. Then that number is the weight. Some exporters
add in bfloat16, though, which leaves eight bits of the sum: then nothing can be had back.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy

from ...errors import CorruptCheckpoint
from ...stores.memory_file import MemoryFile
from ...tensors.dtypes import BY_NAME, DType
from ...tensors.read import read_box
from ...tensors.stored import Extent, StoredTensor, contiguous_strides
from .arithmetic import Array
from .quantized import BAND, Encoding, read_run

#: bytes of a norm's weight that are looked at
_MOST_NBYTES = 1 << 22
_BITS = {"bfloat16": numpy.uint16, "float16": numpy.uint16}


class LessOne(Encoding):
    """The elements of a tensor, each less 1, computed when they are read."""

    __slots__ = ()

    def __init__(self, codes: StoredTensor) -> None:
        self.codes = self.scales = codes
        self.shape = codes.shape

    def codes_at(self, first: int) -> int:
        return first * self.codes.dtype.itemsize

    def decode(self, first: int, target: Array) -> None:
        held = read_run(self.codes, first, len(target)).view(self.codes.dtype.numpy())
        target[:] = held - held.dtype.type(1)


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


def is_exact(stored: StoredTensor, original: DType | None) -> bool:
    """Whether exactly one tensor of type ``original`` gives ``stored`` (float32) when 1 is added to it.

    The sum may have been made in float32 only: where all of ``stored`` are numbers of type ``original``, it
    may have been rounded to that, and nothing is proved.
    """
    sums = _sums(stored)
    if original is None or original.name not in _BITS or sums is None:
        return False
    kind = original.numpy()
    if not numpy.isfinite(sums).all() or (_rounded(sums, kind) == sums).all():
        return False
    found = (sums.astype(numpy.float64) - 1).astype(kind)
    bits = found.view(_BITS[original.name])
    beside = (_sum((bits + numpy.uint16(step)).view(kind)) for step in (1, 0xFFFF))
    return bool((_sum(found) == sums).all() and all((other != sums).all() for other in beside))


def rounding(stored: StoredTensor) -> float:
    """By how much weights may be off that are ``stored`` less 1: the sums were rounded to the narrowest type
    of which all of them are numbers."""
    sums = _sums(stored)
    largest = 1.0 if sums is None else float(numpy.nan_to_num(numpy.abs(sums)).max())
    binade = 2.0 ** max(0, math.frexp(largest)[1] - 1)
    for name, step in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        rounded = sums is not None and (_rounded(sums, BY_NAME[name].numpy()) == sums).all()
        if rounded or stored.dtype.name == name:
            return step * binade
    return 2.0**-24 * binade


def _sums(stored: StoredTensor) -> Array | None:
    """The elements of a vector of float32, None for anything else."""
    (extent,) = stored.extents
    if stored.dtype.name != "float32" or not 0 < stored.nbytes <= _MOST_NBYTES or len(stored.shape) != 1:
        return None
    held = numpy.empty(stored.nbytes, numpy.uint8)
    extent.file.read_into(extent.offset, held.data)
    return held.view(numpy.float32)


def _rounded(values: Array, kind: Any) -> Array:
    return values.astype(kind).astype(numpy.float32)


def _sum(weights: Array) -> Array:
    return weights.astype(numpy.float32) + numpy.float32(1)


#: torch.nn.functional.normalize divides by no less
_SHORTEST: Final = 1e-12


def row_lengths(rows: Array) -> Array:
    """float64 [rows]: the length of each row, float32 [rows, columns]."""
    lengths: Array = numpy.sqrt(numpy.einsum("ij,ij->i", rows, rows, dtype=numpy.float64))
    return lengths


class UnitRows(Encoding):
    """A stored matrix [rows, columns] of any floating type; the quotients are rounded once."""

    __slots__ = ()

    def __init__(self, stored: StoredTensor) -> None:
        self.codes = self.scales = stored
        self.shape = stored.shape
        if len(stored.shape) != 2 or len(stored.extents) != 1 or not stored.dtype.is_floating_point:
            raise CorruptCheckpoint(
                f"{stored.extents[0].file.path}: {stored.name} is {stored.dtype} {list(stored.shape)}, not a "
                "matrix of numbers in one piece"
            )

    def codes_at(self, first: int) -> int:
        return first * self.codes.dtype.itemsize

    def decode(self, first: int, target: Array) -> None:
        columns, done = self.shape[1], 0
        while done < len(target):
            row, column = divmod(first + done, columns)
            whole = (len(target) - done) // columns if column == 0 else 0
            count = max(1, min(whole, BAND // columns))
            length = count * columns if whole else min(columns - column, len(target) - done)
            stored = read_run(self.codes, row * columns, count * columns)
            rows = stored.reshape(count, columns).astype(numpy.float32)
            lengths = numpy.maximum(row_lengths(rows), _SHORTEST).astype(numpy.float32)
            unit = (rows / lengths[:, None]).ravel()
            target[done : done + length] = unit[column : column + length]
            done += length
