"""Writing what ``torch.save`` writes: the archive of one tensor around bytes that others move, or of values.

Sources: torch/serialization.py (``_save``), caffe2/serialize/inline_container.cc (padding, zip64).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from math import prod
from typing import Final

from ...errors import UsageError
from ...tensors import checksum
from ...tensors.dtypes import DType
from . import pickle_writer as opcodes
from .pickle_writer import PickleWriter
from .zip_records import FULL32, central_directory, local_header

_ROOT: Final = b"archive/"
_PADDING: Final = b"FB"  # the extra field that torch pads with


@lru_cache(maxsize=1024)
def _small_records(data_pkl: bytes) -> tuple[bytes, tuple[tuple[bytes, int, int, int], ...]]:
    """The records of every archive but the payload, and their directory entries. All layers and experts
    share them."""
    out = bytearray()
    entries = []
    for key, data in (("data.pkl", data_pkl), ("byteorder", b"little"), ("version", b"3\n")):
        name, crc = _ROOT + key.encode(), checksum.crc32(data)
        entries.append((name, len(data), crc, len(out)))
        out += local_header(name, len(data), crc) + data
    return bytes(out), tuple(entries)


@lru_cache(maxsize=1024)
def _tensor_pickle(dtype: DType, shape: tuple[int, ...]) -> bytes:
    """data.pkl as torch.save writes it for a contiguous tensor on the CPU."""
    writer = PickleWriter()
    put_tensor(writer, dtype, shape, "0")
    return writer.finish()


def put_tensor(writer: PickleWriter, dtype: DType, shape: tuple[int, ...], key: str) -> None:
    """Append a contiguous tensor on the CPU, whose bytes are the record ``data/<key>``."""
    count = prod(shape)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    raw = writer.raw
    writer.name("torch._utils", "_rebuild_tensor_v2" if dtype.storage else "_rebuild_tensor_v3")
    raw(opcodes.MARK + opcodes.MARK)
    writer.text("storage")
    if dtype.storage:
        writer.name("torch", dtype.storage)
    else:
        writer.name("torch.storage", "UntypedStorage")
        count *= dtype.itemsize
    writer.text(key)
    writer.text("cpu")
    raw(opcodes.integer(count) + opcodes.TUPLE + opcodes.PERSISTENT + opcodes.integer(0))
    raw(opcodes.integers(shape) + opcodes.integers(strides[::-1]) + opcodes.FALSE)
    writer.name("collections", "OrderedDict")
    raw(opcodes.EMPTY_TUPLE + opcodes.REDUCE)
    if not dtype.storage:
        writer.name("torch", dtype.name)
    raw(opcodes.TUPLE + opcodes.REDUCE)


@lru_cache(maxsize=4096)
def _trailer_nbytes(entries: tuple[tuple[bytes, int, int, int], ...], nbytes: int, wide: bool) -> int:
    """How long a directory is that ends beyond what 32 bits can say (``wide``) or before."""
    return len(central_directory([*entries, (_ROOT + b"data/0", nbytes, 0, 0)], FULL32 if wide else 0))


#: of a payload's header, without padding: of one that 32 bits can count, and of a larger one
_HEADER_NBYTES: Final = tuple(len(local_header(_ROOT + b"data/0", nbytes, 0)) for nbytes in (0, FULL32))


class TensorItem:
    """The archive of one contiguous tensor, to stand at byte ``offset`` of a file.

    Write ``header(crc32)`` at ``offset``, the ``nbytes`` of the tensor at ``payload_offset`` (a
    multiple of ``alignment`` in the file) and ``trailer(crc32)`` behind them, where ``crc32`` is
    that of the tensor's bytes. Both may be written after the payload: their lengths are fixed.
    """

    __slots__ = ("_entries", "_extra", "_front", "length", "nbytes", "offset", "payload_offset")

    def __init__(self, dtype: DType, shape: tuple[int, ...], offset: int, alignment: int = 64) -> None:
        if not 0 < alignment <= 1 << 15 or alignment & (alignment - 1):
            raise UsageError(f"alignment {alignment} is not a power of two up to 32768")
        self.offset = offset
        self.nbytes = prod(shape) * dtype.itemsize
        self._front, self._entries = _small_records(_tensor_pickle(dtype, shape))
        fixed = len(self._front) + _HEADER_NBYTES[self.nbytes >= FULL32] + 4
        padding = -(offset + fixed) % alignment
        self._extra = struct.pack("<2sH", _PADDING, padding) + b"Z" * padding
        #: absolute
        self.payload_offset = offset + fixed + padding
        #: of the whole archive
        end = fixed + padding + self.nbytes
        self.length = end + _trailer_nbytes(self._entries, self.nbytes, end >= FULL32)

    def header(self, crc32: int) -> bytes:
        return self._front + local_header(_ROOT + b"data/0", self.nbytes, crc32, self._extra)

    def trailer(self, crc32: int) -> bytes:
        payload = (_ROOT + b"data/0", self.nbytes, crc32, len(self._front))
        return central_directory([*self._entries, payload], self.payload_offset - self.offset + self.nbytes)


def object_item(value: object) -> bytes:
    """A whole torch.save archive of plain values; the same value gives the same bytes."""
    writer = PickleWriter()
    writer.value(value)
    front, entries = _small_records(writer.finish())
    return front + central_directory(list(entries), len(front))
