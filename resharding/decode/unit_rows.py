"""The rows of a matrix divided by their lengths, as if they were stored so.

For output layers that do so whenever they run (Baichuan 2's ``NormHead``), of which another system has only
the plain kind. There is no way back: the lengths are gone.
"""

from __future__ import annotations

from typing import Final

import numpy

from ...errors import CorruptCheckpoint
from ...tensors.stored import StoredTensor
from .arithmetic import Array
from .quantized import BAND, Encoding, read_run

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
