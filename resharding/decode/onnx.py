"""Four- and eight-bit weights of ONNX graphs as if they were stored in full, computed when they are read.

Sources: ONNX, operator DequantizeLinear; ONNX Runtime, docs/ContribOperators.md, MatMulNBits. Both give
``(code - zero point) * scale``; four-bit codes lie two in a byte, the one of the low bits first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from ...errors import CorruptCheckpoint
from ...tensors.stored import StoredTensor
from .arithmetic import Array
from .quantized import Encoding, read_run


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """Rows of integers of ``bits`` bits in the bytes of ``stored``, ``stride`` of them a row."""

    stored: StoredTensor
    bits: int
    signed: bool
    stride: int

    def holds(self, rows: int) -> bool:
        """Whether the bytes are those of so many rows."""
        return self.stored.nbytes == -(-rows * self.stride * self.bits // 8)

    def byte(self, row: int, column: int) -> int:
        """The byte in which an integer lies."""
        return (row * self.stride + column) * self.bits // 8

    def take(self, row: int, column: int, count: int) -> Array:
        """``count`` integers of a row, as int32."""
        first, per_byte = row * self.stride + column, 8 // self.bits
        low, high = first // per_byte, -(-(first + count) // per_byte)
        held = read_run(self.stored, low, high - low)
        if self.bits == 8:
            return held.view(numpy.int8 if self.signed else numpy.uint8).astype(numpy.int32)
        shifts = numpy.arange(per_byte, dtype=numpy.uint8) * self.bits
        codes = ((held[:, None] >> shifts) & ((1 << self.bits) - 1)).ravel().astype(numpy.int32)
        codes = codes[first - low * per_byte :][:count]
        return codes - ((codes >> (self.bits - 1)) << self.bits) if self.signed else codes


class Affine(Encoding):
    """Codes [rows, columns] with a scale and a zero point for each block of ``block`` rows and columns.

    ``scales`` holds ceil(rows / block[0]) x ceil(columns / block[1]) elements in C order; so does
    ``zeros``, or is one integer for all.
    """

    __slots__ = ("block", "packed", "zeros")

    def __init__(
        self,
        packed: PackedIntegers,
        scales: StoredTensor,
        shape: tuple[int, int],
        *,
        block: tuple[int, int],
        zeros: PackedIntegers | int,
    ) -> None:
        self.codes, self.scales, self.shape = packed.stored, scales, shape
        self.packed, self.block, self.zeros = packed, block, zeros
        grid = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        count = scales.nbytes // scales.dtype.itemsize
        pointed = isinstance(zeros, int) or zeros.holds(grid[0])
        if (
            count != grid[0] * grid[1]
            or packed.stride < shape[1]
            or not packed.holds(shape[0])
            or not pointed
        ):
            raise CorruptCheckpoint(
                f"{self.codes.extents[0].file.path}: {self.codes.name} has {self.codes.nbytes:,} bytes, "
                f"{count:,} scales and zero points that do not make {shape[0]:,} rows of {shape[1]:,} in "
                f"blocks of {block[0]:,} x {block[1]:,}"
            )

    def codes_at(self, first: int) -> int:
        return self.packed.byte(*divmod(first, self.shape[1]))

    def decode(self, first: int, target: Array) -> None:
        done, columns = 0, self.shape[1]
        while done < len(target):
            row, column = divmod(first + done, columns)
            count = min(columns - column, len(target) - done)
            scales, zeros = self._of_blocks(row // self.block[0], column, count)
            codes = self.packed.take(row, column, count)
            target[done : done + count] = (codes - zeros).astype(scales.dtype) * scales
            done += count

    def _of_blocks(self, row: int, column: int, count: int) -> tuple[Array, Array | int]:
        """The scale and zero point of each of some columns of a row of blocks, or of all together."""
        width = self.block[1]
        low, high = column // width, (column + count - 1) // width
        number = high - low + 1
        at = row * -(-self.shape[1] // width) + low
        scales = read_run(self.scales, at, number).view(self.scales.dtype.numpy())
        zeros = self.zeros if isinstance(self.zeros, int) else self.zeros.take(row, low, number)
        if number == 1:
            return scales, zeros
        inside = slice(column - low * width, column - low * width + count)
        spread = zeros if isinstance(zeros, int) else numpy.repeat(zeros, width)[inside]
        return numpy.repeat(scales, width)[inside], spread
