"""What a reader tells of a tensor without reading its data: type, shape and where its bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from .byte_source import ByteSource
from .dtypes import DType


class Extent(NamedTuple):
    """A box of a tensor that lies in one file at regular strides.

    ``start`` and ``shape`` place the box in the tensor, in elements; ``offset`` is the byte of the
    box's first element and ``strides`` the bytes between neighbours along each axis.
    """

    file: ByteSource
    offset: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A named tensor made of extents that tile it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Byte strides of a tensor in C order."""
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
