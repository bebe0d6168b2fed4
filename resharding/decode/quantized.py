"""Quantized tensors as if they were stored in full: a file whose bytes are computed when they are read.

Everything that reads a tensor by extents reads a quantized one alike. Nothing is kept: the codes and
scales of what is asked for are read, multiplied and forgotten, a band of at most :data:`BAND` elements
at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod

import numpy

from ...errors import CorruptCheckpoint
from ...stores.files import SourceFile
from ...tensors.byte_source import ByteSource
from ...tensors.dtypes import DType
from ...tensors.stored import Extent, StoredTensor, contiguous_strides
from .arithmetic import MXFP4_GROUP, MXFP4_NBYTES, Array, fp8_into, mxfp4_into, scale_values

#: elements decoded at once: their float32 stay in the processor's cache
BAND = 128 << 10


class Encoding(ABC):
    """Codes and scales of one tensor, ``shape`` when decoded, in C order."""

    __slots__ = ("codes", "scales", "shape")

    codes: StoredTensor
    scales: StoredTensor
    shape: tuple[int, ...]

    @abstractmethod
    def decode(self, first: int, target: Array) -> None:
        """Fill the flat ``target`` with the elements from index ``first`` on."""

    @abstractmethod
    def codes_at(self, first: int) -> int:
        """The byte of ``codes`` that holds element ``first``, counted from the tensor's start."""


class BlockScaledFP8(Encoding):
    """FP8 codes [..., rows, columns] with a scale for each block of ``block`` rows and columns.

    scales [..., ceil(rows / block[0]), ceil(columns / block[1])]; the last blocks may be cut short.
    """

    __slots__ = ("block", "grid")

    def __init__(self, codes: StoredTensor, scales: StoredTensor, block: tuple[int, int]) -> None:
        self.codes, self.scales, self.shape, self.block = codes, scales, codes.shape, block
        *outer, rows, columns = codes.shape if len(codes.shape) > 1 else (0, 0)
        self.grid = -(-rows // block[0]), -(-columns // block[1])
        if _squeezed(scales.shape) != _squeezed((*outer, *self.grid)) or len(codes.shape) < 2:
            raise CorruptCheckpoint(
                f"{codes.extents[0].file.path}: {codes.name} of shape {list(codes.shape)} in blocks of "
                f"{block[0]} x {block[1]} has scales {[*outer, *self.grid]}, not {list(scales.shape)}"
            )

    def codes_at(self, first: int) -> int:
        return first

    def decode(self, first: int, target: Array) -> None:
        *_, rows, columns = self.shape
        done = 0
        while done < len(target):
            row, column = divmod(first + done, columns)  # a row of all matrices, one below the other
            matrix, inside = divmod(row, rows)
            height, width = 1, min(columns - column, len(target) - done)
            if column == 0 and width == columns:  # whole rows, of one row of blocks
                most = min(self.block[0] - inside % self.block[0], rows - inside)
                height = min(most, (len(target) - done) // columns, max(1, BAND // columns))
            codes = read_run(self.codes, first + done, height * width).reshape(height, width)
            scales = self._scales(matrix, inside // self.block[0], column, width)
            part = target[done : done + height * width].reshape(height, width)
            fp8_into(codes, self.codes.dtype.name, scales, part)
            done += height * width

    def _scales(self, matrix: int, row: int, column: int, width: int) -> Array:
        """The scale of each of some columns, float32 [width], or [1] where they have one."""
        low, high = column // self.block[1], (column + width - 1) // self.block[1]
        at = (matrix * self.grid[0] + row) * self.grid[1] + low
        values = scale_values(read_run(self.scales, at, high - low + 1))
        if low == high:
            return values
        inside = column - low * self.block[1]
        return numpy.repeat(values, self.block[1])[inside : inside + width]


class MXFP4(Encoding):
    """Packed E2M1 codes uint8 [..., groups, 16] with an exponent uint8 [..., groups] for each 32 of them.

    Decoded: [..., groups * 32], the value in the low four bits of a byte before that in the high.
    """

    __slots__ = ()

    def __init__(self, codes: StoredTensor, scales: StoredTensor) -> None:
        if codes.shape[-1:] != (MXFP4_NBYTES,) or codes.shape[:-1] != scales.shape or len(codes.shape) < 2:
            raise CorruptCheckpoint(
                f"{codes.extents[0].file.path}: {codes.name} has shape {list(codes.shape)} and {scales.name} "
                f"{list(scales.shape)}; MXFP4 has blocks [..., groups, {MXFP4_NBYTES}], scales [..., groups]"
            )
        self.codes, self.scales = codes, scales
        self.shape = (*codes.shape[:-2], codes.shape[-2] * MXFP4_GROUP)

    def codes_at(self, first: int) -> int:
        return first // 2

    def decode(self, first: int, target: Array) -> None:
        done = 0
        while done < len(target):
            group, skip = divmod(first + done, MXFP4_GROUP)
            count = min(-(-(skip + len(target) - done) // MXFP4_GROUP), BAND // MXFP4_GROUP)
            packed = read_run(self.codes, group * MXFP4_NBYTES, count * MXFP4_NBYTES)
            exponents = read_run(self.scales, group, count).view(numpy.uint8)
            length = min(count * MXFP4_GROUP - skip, len(target) - done)
            whole = skip == 0 and length == count * MXFP4_GROUP
            values = target[done : done + length] if whole else numpy.empty(count * MXFP4_GROUP, target.dtype)
            mxfp4_into(packed.reshape(count, -1), exponents, values.reshape(count, MXFP4_GROUP))
            if not whole:
                target[done : done + length] = values[skip : skip + length]
            done += length


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def read_run(tensor: StoredTensor, first: int, count: int) -> Array:
    """Elements of a tensor that lies in C order in one extent; eight-bit types come as uint8."""
    (extent,) = tensor.extents
    size = tensor.dtype.itemsize
    buffer = numpy.empty(count * size, numpy.uint8)
    extent.file.read_into(extent.offset + first * size, buffer.data)
    return buffer if size == 1 else buffer.view(tensor.dtype.numpy())


class DecodedFile(SourceFile):
    """The decoded elements of one tensor, in C order, as a file of type ``dtype``."""

    __slots__ = ("dtype", "encoding")

    short_read = 8 << 10

    def __init__(self, encoding: Encoding, dtype: DType) -> None:
        codes = encoding.codes.extents[0].file
        self.encoding, self.dtype = encoding, dtype
        self.path, self.name = codes.path, codes.name
        self.size = prod(encoding.shape) * dtype.itemsize

    @property
    def version(self) -> str:
        return "+".join(origin.version for origin in self.origins)

    @property
    def origins(self) -> tuple[ByteSource, ...]:
        return self.encoding.codes.extents[0].file, self.encoding.scales.extents[0].file

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, which holds whole elements, from byte ``offset``, where one begins."""
        target = numpy.frombuffer(buffer, numpy.uint8).view(self.dtype.numpy())
        self.encoding.decode(offset // self.dtype.itemsize, target)

    def position(self, offset: int) -> tuple[str, int]:
        extent = self.encoding.codes.extents[0]
        return extent.file.position(extent.offset + self._byte(offset))

    def will_need(self, offset: int, length: int) -> None:
        extent, first = self.encoding.codes.extents[0], self._byte(offset)
        extent.file.will_need(extent.offset + first, self._byte(offset + length) - first)

    def stored_nbytes(self, length: int) -> int:
        """How many bytes of codes ``length`` decoded bytes are read from."""
        return self._byte(length)

    def _byte(self, offset: int) -> int:
        return self.encoding.codes_at(offset // self.dtype.itemsize)

    def check_unchanged(self) -> None:
        for file in self.origins:
            file.check_unchanged()

    def close(self) -> None:
        """Nothing to do: the files are the checkpoint's."""


def decoded(name: str, encoding: Encoding, dtype: DType, *, transposed: bool = False) -> StoredTensor:
    """The tensor that an encoding stands for; ``transposed``: its last two axes exchanged."""
    shape = encoding.shape
    strides = contiguous_strides(shape, dtype.itemsize)
    if transposed:
        shape = (*shape[:-2], shape[-1], shape[-2])
        strides = (*strides[:-2], strides[-1], strides[-2])
    extent = Extent(DecodedFile(encoding, dtype), 0, (0,) * len(shape), shape, strides)
    return StoredTensor(name, dtype, shape, (extent,))
