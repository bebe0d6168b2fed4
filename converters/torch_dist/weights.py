"""The tensors of a distributed checkpoint inside a ``.nemo``: torch_dist or zarr, one name per layer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedFormat
from ...formats.text import plain_json
from ...formats.torch import dist as torch_dist
from ...formats.torch import tensors as torch_tensors
from ...stores.files import Folder
from ...tensors.dtypes import BY_NAME, DType
from ...tensors.stored import Extent, StoredTensor, contiguous_strides
from ..base import Piece, TensorSpec
from . import names as names
from .chunks import DistChunks, count_objects, join_halves, name_rows

_MAX_CHUNKS: Final = 1 << 20
_METADATA: Final = "metadata.json"


class DistWeights(ABC):
    """Tensors that lie there whole, whatever ranks wrote them."""

    cut = False
    writer: str
    skipped: dict[str, int]
    repeated: Sequence[tuple[StoredTensor, StoredTensor]] = ()
    derived: Sequence[tuple[str, StoredTensor]] = ()

    @abstractmethod
    def names(self) -> Sequence[str]:
        """The tensors' names, one for each layer (and expert)."""

    @abstractmethod
    def _spec(self, name: str) -> TensorSpec:
        """What headers say of a tensor."""

    @abstractmethod
    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies."""

    @abstractmethod
    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """Check those of the format, yielding (file, bytes read)."""

    def dtype(self, name: str) -> DType:
        return self._spec(name).dtype

    def specs(self, name: str) -> Sequence[tuple[int | None, TensorSpec]]:
        return [(None, self._spec(name))]

    def pieces(self, name: str) -> Sequence[Piece]:
        return [Piece(name, None, self.stored(name))]


class TorchDistWeights(DistWeights):
    """The tensors of a torch_dist folder, their names without ``prefix``."""

    def __init__(self, folder: Folder, under: str, prefix: str) -> None:
        self._metadata = torch_dist.read_metadata(folder, under)
        self.writer = str(self._metadata.writer)
        self._chunks = DistChunks(folder, under)
        joined = join_halves(self._metadata.tensors, folder.path)
        self._places = name_rows(joined.values(), prefix, folder.path)
        self.skipped: dict[str, int] = {}
        count_objects(self._metadata, self.skipped)

    def names(self) -> Sequence[str]:
        return list(self._places)

    def _spec(self, name: str) -> TensorSpec:
        tensor, index = self._places[name]
        return TensorSpec(name, tensor.dtype, tensor.shape[len(index) :])

    def stored(self, name: str) -> StoredTensor:
        """The tensor of one layer (and expert), out of the chunks of the one that is stored."""
        return self._chunks.stored(name, *self._places[name])

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        return self._chunks.verify(self._metadata)


class ZarrWeights(DistWeights):
    """The arrays of a zarr (version 2) folder that are not compressed, read chunk by chunk in place.

    Source: the zarr storage specification, version 2; megatron/core/dist_checkpointing/strategies/zarr.py,
    which compresses nothing. Edge chunks are stored whole.
    """

    writer = "megatron-core (zarr)"

    def __init__(self, folder: Folder, under: str, prefix: str) -> None:
        self._folder = folder
        self.skipped: dict[str, int] = {}
        self._arrays: dict[str, tuple[_Array, tuple[int, ...]]] = {}
        for place in folder.folders(under):
            key = place.rpartition("/")[2].removeprefix(prefix)
            if not folder.exists(f"{place}/.zarray"):
                self.skipped["objects"] = self.skipped.get("objects", 0) + 1
                continue
            array = _Array(folder, place)
            axes = names.leading_axes(key)
            if len(array.shape) < axes or prod(array.shape[:axes]) > names.MAX_STACKED:
                raise CorruptCheckpoint(f"{folder.path}: {key} has shape {list(array.shape)}")
            for index in product(*map(range, array.shape[:axes])):
                name = names.logical_name(key, index)
                if name in self._arrays:
                    raise CorruptCheckpoint(f"{folder.path}: {name} is stored twice")
                self._arrays[name] = (array, index)

    def names(self) -> Sequence[str]:
        return list(self._arrays)

    def _spec(self, name: str) -> TensorSpec:
        array, index = self._arrays[name]
        return TensorSpec(name, array.dtype, array.shape[len(index) :])

    def stored(self, name: str) -> StoredTensor:
        array, index = self._arrays[name]
        extents = array.extents(index)
        return StoredTensor(name, array.dtype, array.shape[len(index) :], tuple(extents))

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """Nothing: the format has none."""
        yield from ()


_KINDS: Final = {
    "<f8": "float64",
    "<f4": "float32",
    "<f2": "float16",
    "bfloat16": "bfloat16",
    "<i8": "int64",
    "<i4": "int32",
    "|u1": "uint8",
    "|i1": "int8",
    "|b1": "bool",
}


class _Array:
    """One zarr array: its ``.zarray``, and where its chunks lie."""

    def __init__(self, folder: Folder, place: str) -> None:
        self._folder, self._place = folder, place
        where = f"{folder.path}: {place}/.zarray"
        facts = plain_json.loads_object(folder.read(f"{place}/.zarray", 1 << 20), where)
        if facts.get("zarr_format") != 2 or facts.get("order") != "C" or facts.get("filters"):
            raise UnsupportedFormat(f"{where}: only zarr of version 2 in C order without filters is read")
        if facts.get("compressor") is not None:
            raise UnsupportedFormat(
                f"{where}: its chunks are compressed",
                hint="save the checkpoint without a compressor, or as torch_dist",
            )
        kind = _KINDS.get(str(facts.get("dtype")))
        if kind is None:
            raise UnsupportedFormat(f"{where}: elements of type {str(facts.get('dtype'))[:40]!r}")
        self.dtype = BY_NAME[kind]
        self.shape, self._chunk = (_sizes(facts.get(name), where) for name in ("shape", "chunks"))
        if len(self.shape) != len(self._chunk) or 0 in self._chunk:
            raise CorruptCheckpoint(f"{where}: chunks {list(self._chunk)} of shape {list(self.shape)}")
        counts = [-(-size // step) for size, step in zip(self.shape, self._chunk, strict=True)]
        if prod(self.shape) > torch_tensors.MAX_ELEMENTS or prod(counts) > _MAX_CHUNKS:
            raise UnsafeCheckpoint(f"{where}: {prod(counts):,} chunks of shape {list(self.shape)}")
        self._counts = tuple(counts)
        self._separator = "/" if facts.get("dimension_separator") == "/" else "."
        self._nbytes = prod(self._chunk) * self.dtype.itemsize

    def extents(self, index: tuple[int, ...]) -> Iterator[Extent]:
        """What lies at ``index`` of the leading axes, without these axes."""
        axes = len(index)
        strides = contiguous_strides(self._chunk, self.dtype.itemsize)
        fixed = [at // step for at, step in zip(index, self._chunk, strict=False)]
        for rest in product(*map(range, self._counts[axes:])):
            chunk = (*fixed, *rest)
            start = tuple(i * step for i, step in zip(chunk, self._chunk, strict=True))
            shape = tuple(
                min(step, size - first)
                for first, step, size in zip(start, self._chunk, self.shape, strict=True)
            )
            offset = sum((a - b) * n for a, b, n in zip(index, start, strides, strict=False))
            name = f"{self._place}/{self._separator.join(map(str, chunk)) or '0'}"
            file = self._folder.file(name)
            if file.size != self._nbytes:
                raise CorruptCheckpoint(
                    f"{file.path}: has {file.size:,} bytes, a chunk of this array {self._nbytes:,}",
                    hint="the copy may be cut short; compare its size with the original",
                )
            yield Extent(file, offset, start[axes:], shape[axes:], strides[axes:])


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > torch_tensors.MAX_AXES:
        raise CorruptCheckpoint(f"{where}: {json.dumps(value)[:80]} is no shape")
    if any(type(size) is not int or size < 0 for size in value):
        raise CorruptCheckpoint(f"{where}: {json.dumps(value)[:80]} is no shape")
    return tuple(value)


def open_dist_weights(folder: Folder, under: str, prefix: str) -> DistWeights:
    """The distributed checkpoint in the folder ``under``, by what its metadata.json says it is."""
    backend = read_backend(folder, under)
    return (
        ZarrWeights(folder, under, prefix) if backend == "zarr" else TorchDistWeights(folder, under, prefix)
    )


def read_backend(folder: Folder, under: str) -> str:
    where = f"{folder.path}: {under}/{_METADATA}"
    if not folder.exists(f"{under}/{_METADATA}"):
        raise CorruptCheckpoint(f"{where}: missing", hint="the checkpoint looks incomplete")
    facts: Mapping[str, Any] = plain_json.loads_object(folder.read(f"{under}/{_METADATA}", 1 << 20), where)
    backend = facts.get("sharded_backend")
    if backend not in ("torch_dist", "zarr"):
        raise UnsupportedFormat(
            f"{where}: sharded_backend={str(backend)[:40]!r}; torch_dist and zarr are read"
        )
    return str(backend)
