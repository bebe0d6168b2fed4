"""safetensors files: headers parsed strictly and emitted, no data touched.

Source: the safetensors README, section "Format": eight bytes of header length, a JSON header, then
the data, which the tensors must cover exactly once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from math import prod

from ..errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError
from ..stores.files import SourceFile
from ..tensors.dtypes import BY_SAFETENSORS, DType
from ..tensors.stored import Extent, StoredTensor, contiguous_strides
from .text import plain_json

MAX_HEADER = 100_000_000  # the limit of the reference implementation
MAX_ELEMENTS = 1 << 48
_LFS = b"version https://git-lfs"


def read_header(file: SourceFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """(tensors by name, metadata) of a file.

    Raises CorruptCheckpoint when the header and the file do not agree to the byte.
    """
    prefix = file.pread(min(file.size, 64), 0)
    if prefix.startswith(_LFS):
        raise CorruptCheckpoint(
            f"{file.path}: is a Git LFS pointer, not the file itself",
            hint="run 'git lfs pull' there",
        )
    if len(prefix) < 8:
        raise CorruptCheckpoint(f"{file.path}: {file.size} bytes are too few for a safetensors file")
    (length,) = struct.unpack_from("<Q", prefix)
    if length > MAX_HEADER or 8 + length > file.size:
        raise CorruptCheckpoint(
            f"{file.path}: claims a header of {length:,} bytes in a file of {file.size:,}",
            hint="the file is truncated or not safetensors",
        )
    header = plain_json.loads(file.pread(length, 8), f"{file.path} (header)", max_bytes=MAX_HEADER)
    if not isinstance(header, dict):
        raise CorruptCheckpoint(f"{file.path}: the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptCheckpoint(f"{file.path}: __metadata__ is not a table of strings")
    base = 8 + length
    tensors = {name: _tensor(file, base, name, entry) for name, entry in header.items()}
    _check_covered(file, base, tensors)
    return tensors, metadata


def _tensor(file: SourceFile, base: int, name: str, entry: object) -> StoredTensor:
    where = f"{file.path}: tensor {name!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptCheckpoint(f"{where} is not described by dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CorruptCheckpoint(f"{where} has shape {shape!r} and data_offsets {offsets!r}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in BY_SAFETENSORS:
        raise UnsupportedError(f"{where} has the unsupported dtype {entry['dtype']!r}")
    dtype = BY_SAFETENSORS[entry["dtype"]]
    count = 1
    for length in shape:
        count *= length
        if count > MAX_ELEMENTS:  # at once, as the reference does: products of millions of sizes take hours
            raise UnsafeCheckpoint(f"{where} claims more than {MAX_ELEMENTS:,} elements")
    first, last = offsets
    if last - first != count * dtype.itemsize or base + last > file.size:
        raise CorruptCheckpoint(
            f"{where} of shape {shape} and dtype {dtype} does not fit bytes {first:,}..{last:,} of the data",
            hint="the copy looks cut short; compare its size with the original"
            if base + last > file.size
            else "the header is broken; copy the file again",
        )
    size = tuple(shape)
    extent = Extent(file, base + first, (0,) * len(size), size, contiguous_strides(size, dtype.itemsize))
    return StoredTensor(name, dtype, size, (extent,))


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_covered(file: SourceFile, base: int, tensors: dict[str, StoredTensor]) -> None:
    """No holes, no overlaps, nothing behind the last tensor: the format's guard against polyglots."""
    at = base
    for tensor in sorted(tensors.values(), key=lambda t: (t.extents[0].offset, t.nbytes)):
        offset = tensor.extents[0].offset
        if offset != at:
            kind = (
                "overlaps the one before" if offset < at else f"leaves a hole of {offset - at:,} bytes before"
            )
            raise CorruptCheckpoint(f"{file.path}: tensor {tensor.name!r} {kind} it")
        at += tensor.nbytes
    if at != file.size:
        raise CorruptCheckpoint(
            f"{file.path}: tensors end at byte {at:,}, the file at {file.size:,}",
            hint="the file is truncated or has bytes appended",
        )


def emit_header(tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> tuple[bytes, list[int]]:
    """(header bytes, absolute offset of each tensor) of a file that holds these tensors in this order.

    The data starts at a multiple of 64 bytes; every tensor is aligned to its element size, for which
    the tensors must come ordered by falling element size unless all have the same.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, places = 0, []
    for name, dtype, shape in tensors:
        end = at + prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": dtype.safetensors,
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        places.append(at)
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % 64)
    base = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, [base + place for place in places]
