"""Reading one layer (and expert) out of tensors that torch_dist stores stacked, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from ...errors import CorruptCheckpoint
from ...formats.torch import dist as torch_dist
from ...formats.torch import zip as torch_zip
from ...formats.torch.dist import DistChunk, DistMetadata, DistTensor
from ...stores.files import Folder
from ...tensors.stored import Extent, StoredTensor
from . import names as names

Index = tuple[int, ...]
#: logical name -> the stored tensor, and the index on its leading axes
Places = dict[str, tuple[DistTensor, Index]]


def name_rows(tensors: Iterable[DistTensor], prefix: str, where: object) -> Places:
    """Every layer and expert of stored tensors by its logical name, without ``prefix``.

    Raises CorruptCheckpoint for one that is there twice, or for shapes that no model has.
    """
    places: Places = {}
    for tensor in tensors:
        stored = tensor.name.removeprefix(prefix)
        axes = names.leading_axes(stored)
        if len(tensor.shape) < axes or prod(tensor.shape[:axes]) > names.MAX_STACKED:
            raise CorruptCheckpoint(f"{where}: {stored} has shape {list(tensor.shape)}")
        for index in product(*map(range, tensor.shape[:axes])):
            name = names.logical_name(stored, index)
            if name in places:
                raise CorruptCheckpoint(f"{where}: {name} is stored twice, stacked and alone")
            places[name] = (tensor, index)
    return places


def join_halves(tensors: Mapping[str, DistTensor], where: object) -> dict[str, DistTensor]:
    """``tensors`` with a gate and an up that lie under keys of their own (``linear_fc1.weight_w`` and
    ``_v``, of ``singleton_local_shards``) as the one tensor that they are under any other name."""
    joined: dict[str, DistTensor] = {}
    for key, tensor in tensors.items():
        whole = names.whole_of_half(key)
        if whole is None:
            joined[key] = tensor
        elif key == names.halves_of(whole)[0]:
            joined[whole] = _joined(whole, tensor, tensors.get(names.halves_of(whole)[1]), where)
        elif names.halves_of(whole)[0] not in tensors:
            raise CorruptCheckpoint(f"{where}: {key} is stored without its other half")
        if whole in tensors:
            raise CorruptCheckpoint(f"{where}: {whole} is stored twice, whole and in halves")
    return joined


def _joined(key: str, gate: DistTensor, up: DistTensor | None, where: object) -> DistTensor:
    axis = names.leading_axes(key.removeprefix(names.PREFIX))
    if up is None or gate.shape != up.shape or gate.dtype != up.dtype or len(gate.shape) <= axis:
        raise CorruptCheckpoint(f"{where}: {gate.name} has no other half of its shape and type")
    rows = gate.shape[axis]
    moved = (
        replace(chunk, start=(*chunk.start[:axis], chunk.start[axis] + rows, *chunk.start[axis + 1 :]))
        for chunk in up.chunks
    )
    shape = (*gate.shape[:axis], 2 * rows, *gate.shape[axis + 1 :])
    return DistTensor(key, gate.dtype, shape, (*gate.chunks, *moved))


def count_objects(metadata: DistMetadata, counts: dict[str, int]) -> None:
    """Add to ``counts`` what is no tensor, by kind."""
    for key in metadata.objects:
        what = "_extra_state objects" if names.EXTRA_STATE in key else "other objects"
        counts[what] = counts.get(what, 0) + 1


class DistChunks:
    """The chunks of a torch_dist folder ``under`` in ``folder``, each item's framing read once."""

    def __init__(self, folder: Folder, under: str) -> None:
        self._folder, self._under = folder, under
        self._by_index: dict[str, dict[Index, list[DistChunk]]] = {}
        self._extents: dict[DistChunk, Extent] = {}

    def at(self, tensor: DistTensor, index: Index) -> list[DistChunk]:
        """The chunks that hold a part of ``index`` on the leading axes."""
        if tensor.name not in self._by_index:
            places: dict[Index, list[DistChunk]] = {}
            axes = len(index)
            for chunk in tensor.chunks:
                lead = zip(chunk.start[:axes], chunk.shape[:axes], strict=True)
                for place in product(*(range(first, first + count) for first, count in lead)):
                    places.setdefault(place, []).append(chunk)
            self._by_index[tensor.name] = places
        return self._by_index[tensor.name].get(index, [])

    def extent(self, tensor: DistTensor, chunk: DistChunk) -> Extent:
        """Where the bytes of a whole chunk lie."""
        if chunk not in self._extents:
            self._extents[chunk] = torch_dist.read_chunk(self._folder, tensor, chunk, self._under)
        return self._extents[chunk]

    def row(self, tensor: DistTensor, chunk: DistChunk, index: Index) -> Extent:
        """The part of a chunk at ``index``, without the leading axes."""
        axes = len(index)
        file, offset, start, shape, strides = self.extent(tensor, chunk)
        offset += sum((a - b) * n for a, b, n in zip(index, start, strides, strict=False))
        return Extent(file, offset, start[axes:], shape[axes:], strides[axes:])

    def stored(self, name: str, tensor: DistTensor, index: Index) -> StoredTensor:
        """``tensor`` at ``index`` of its leading axes: that of one layer (and expert), called ``name``."""
        found = tuple(self.row(tensor, chunk, index) for chunk in self.at(tensor, index))
        return StoredTensor(name, tensor.dtype, tensor.shape[len(index) :], found)

    def verify(self, metadata: DistMetadata) -> Iterator[tuple[str, int]]:
        """Check the CRC-32 of every item, file by file, yielding (file, bytes read)."""
        items: list[Any] = [chunk for tensor in metadata.tensors.values() for chunk in tensor.chunks]
        items += metadata.objects.values()
        for item in sorted(items, key=lambda item: (item.file_name, item.offset)):
            name = f"{self._under}/{item.file_name}" if self._under else item.file_name
            yield name, torch_zip.verify_crc(self._folder.file(name), item.offset, item.length)
