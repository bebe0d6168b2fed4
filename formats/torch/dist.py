"""Megatron's torch_dist checkpoints: ``.metadata``, ``metadata.json`` and the ``.distcp`` files.

``.metadata`` is a pickle of ``torch.distributed.checkpoint.metadata.Metadata``: for each tensor its
global shape and the boxes ("chunks") it was cut into, for each box the file, offset and length of
its torch.save archive. Which rank or pipeline stage wrote a box is not part of it. Sources:
torch/distributed/checkpoint/{metadata,filesystem,planner}.py of 2.13,
megatron/core/dist_checkpointing/strategies/torch.py of 0.9 to 0.16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError, UnsupportedFormat, some
from ...stores.files import Folder
from ...tensors.dtypes import DType
from ...tensors.stored import Extent
from ..text import plain_json
from . import tensors as torch_tensors
from . import zip as torch_zip
from .pickles import Known, PickledDict, Stub, brief, check_bounded, loads

METADATA: Final = "torch.distributed.checkpoint.metadata"
_OLD_METADATA: Final = "torch.distributed._shard.sharded_tensor.metadata"
FILESYSTEM: Final = "torch.distributed.checkpoint.filesystem"
_PLANNER: Final = "torch.distributed.checkpoint.planner"
_MCORE: Final = "megatron.core.dist_checkpointing.strategies.torch"

#: the largest seen: 0.2 kB a chunk, twice that with all_local_plans
_MAX_METADATA: Final = 1 << 30
_MAX_OPCODES: Final = 50_000_000

#: the text that megatron-core writes; it refuses other keys
METADATA_JSON: Final = (
    b'{"sharded_backend": "torch_dist", "sharded_backend_version": 1,'
    b' "common_backend": "torch", "common_backend_version": 1}'
)


def _layout(name: object) -> object:
    return name


_KNOWN: Final[Known] = {
    **torch_tensors.DTYPES_KNOWN,
    **dict.fromkeys(
        [
            (METADATA, "Metadata"),
            (METADATA, "MetadataIndex"),
            (METADATA, "TensorStorageMetadata"),
            (METADATA, "BytesStorageMetadata"),
            (METADATA, "ChunkStorageMetadata"),
            (METADATA, "TensorProperties"),
            (METADATA, "StorageMeta"),
            (METADATA, "_MEM_FORMAT_ENCODING"),
            (_OLD_METADATA, "TensorProperties"),
            (_OLD_METADATA, "MEM_FORMAT_ENCODING"),
            (FILESYSTEM, "_StorageInfo"),
            (FILESYSTEM, "_StoragePrefix"),
            (_PLANNER, "SavePlan"),
            (_PLANNER, "WriteItem"),
            (_PLANNER, "WriteItemType"),
            (_PLANNER, "TensorWriteData"),
            (_PLANNER, "BytesIOWriteData"),
            (_MCORE, "MCoreMetadata"),
            (_MCORE, "MCoreSavePlan"),
            ("pathlib", "PosixPath"),
            ("pathlib", "PurePosixPath"),
            ("pathlib", "Path"),
            ("pathlib._local", "PosixPath"),
        ],
        Stub,
    ),
    ("torch", "Size"): torch_tensors.torch_size,
    ("torch.serialization", "_get_layout"): _layout,
    ("collections", "OrderedDict"): PickledDict,
}


@dataclass(frozen=True, slots=True)
class DistChunk:
    """A box of a tensor (``start`` and ``shape`` in elements) and the archive that holds it."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file_name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DistTensor:
    """A tensor by its global name, type and shape. Its chunks tile it exactly."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[DistChunk, ...]


@dataclass(frozen=True, slots=True)
class DistObject:
    """A pickled object, such as ``..._extra_state/shard_0_4``: a whole torch.save archive."""

    name: str
    file_name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DistMetadata:
    """What ``.metadata`` says, checked. ``writer`` is a guess from the classes met in it.

    ``mcore_data`` holds ``nd_reformulated_orig_global_shape`` of flattened optimizer tensors.
    """

    tensors: dict[str, DistTensor]
    objects: dict[str, DistObject]
    mcore_data: dict[str, dict[str, Any]]
    writer: str
    notes: tuple[str, ...]


def read_backend(directory: Folder, under: str = "") -> str:
    """The sharded backend that metadata.json names: always ``torch_dist``, others are refused."""
    name = _join(under, "metadata.json")
    path = directory.path / name
    if not directory.exists(name):
        raise CorruptCheckpoint(
            f"{path}: missing", hint="it is written last, so the save was probably interrupted"
        )
    config = plain_json.loads_object(directory.read(name, 1 << 16), str(path))
    wanted = json.loads(METADATA_JSON)
    for key, value in config.items():
        if key not in wanted:
            raise UnsupportedFormat(f"{path}: unknown key {key[:100]!r}")
        if type(value) is not type(wanted[key]) or value != wanted[key]:
            raise UnsupportedFormat(
                f"{path}: {key} is {brief(value)}, but only {wanted[key]!r} can be read",
                hint="convert it to torch_dist with the Megatron that wrote it",
            )
    if "sharded_backend" not in config:
        raise CorruptCheckpoint(f"{path}: names no sharded_backend")
    return str(config["sharded_backend"])


def _join(under: str, name: str) -> str:
    return f"{under}/{name}" if under else name


# Reading .metadata


def read_metadata(directory: Folder, under: str = "") -> DistMetadata:
    """Read and check ``.metadata`` without looking into any payload.

    Every chunk lies in its tensor, the chunks of a tensor tile it, every chunk and object has a
    place in a file that exists and is long enough, and no two of them overlap there. Raises
    CorruptCheckpoint, UnsafeCheckpoint, or UnsupportedError for what cannot be read by offset.
    """
    name = _join(under, ".metadata")
    where = str(directory.path / name)
    if not directory.exists(name):
        if directory.exists(name + ".tmp"):
            raise CorruptCheckpoint(
                f"{where}: missing, but .metadata.tmp is there: the save was interrupted",
                hint="use the checkpoint before this one",
            )
        raise CorruptCheckpoint(f"{where}: missing", hint="the copy is incomplete")
    root = loads(
        directory.read(name, _MAX_METADATA),
        known=_KNOWN,
        where=where,
        max_bytes=_MAX_METADATA,
        max_opcodes=_MAX_OPCODES,
        max_memo=_MAX_OPCODES,
    )
    return _MetadataReader(directory, under, where).read(root)


class _MetadataReader:
    def __init__(self, directory: Folder, under: str, where: str) -> None:
        self.directory = directory
        self.under = under
        self.where = where
        self.notes: list[str] = []

    def corrupt(self, what: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self.where}: {what}")

    def read(self, root: object) -> DistMetadata:
        if _kind(root) not in ((METADATA, "Metadata"), (_MCORE, "MCoreMetadata")):
            raise self.corrupt("does not hold the metadata of a distributed checkpoint")
        assert isinstance(root, Stub)
        entries, storage = root.get("state_dict_metadata"), root.get("storage_data")
        if not isinstance(entries, dict) or not isinstance(storage, dict):
            raise self.corrupt("lists no tensors (state_dict_metadata) or no places (storage_data)")
        places = self.places(storage)
        tensors: dict[str, DistTensor] = {}
        objects: dict[str, DistObject] = {}
        for name, entry in entries.items():
            if type(name) is not str:
                raise self.corrupt("a tensor whose name is not text")
            kind = _kind(entry)
            if kind == (METADATA, "TensorStorageMetadata"):
                tensors[name] = self.tensor(name, entry, places)
            elif kind == (METADATA, "BytesStorageMetadata"):
                objects[name] = DistObject(name, *self.place(places, name, None))
            else:
                raise self.corrupt(f"{name[:200]}: neither a tensor nor an object")
        self.check_files(tensors, objects)
        if places:
            self.notes.append(f"{len(places)} places in files that belong to no tensor")
        return DistMetadata(tensors, objects, self.mcore_data(root), _writer(root), tuple(self.notes))

    def places(self, storage: Mapping[Any, Any]) -> dict[Any, tuple[str, int, int]]:
        """(name, start or None) -> file name, offset, length."""
        places: dict[Any, tuple[str, int, int]] = {}
        for index, info in storage.items():
            if _kind(index) != (METADATA, "MetadataIndex"):
                raise self.corrupt("a place in a file that belongs to no tensor name")
            if _kind(info) != (FILESYSTEM, "_StorageInfo"):
                raise self.corrupt("a place in a file of an unknown kind")
            name, start = index.get("fqn"), index.get("offset")
            file_name, offset, length = (
                info.get("relative_path"),
                info.get("offset"),
                info.get("length"),
            )
            if type(name) is not str or type(file_name) is not str:
                raise self.corrupt("a place in a file without a name")
            if type(offset) is not int or type(length) is not int or offset < 0 or length <= 0:
                raise self.corrupt(f"{name[:200]}: placed at offset {brief(offset)}, {brief(length)} bytes")
            if info.get("transform_descriptors"):
                raise UnsupportedError(
                    f"{self.where}: {name[:200]} was written through a transform"
                    f" ({_transforms(info.get('transform_descriptors'))}), such as compression",
                    hint="save it again without extensions of the storage writer",
                )
            key = (name, None if start is None else self.sizes(name, start))
            if key in places:
                raise self.corrupt(f"{name[:200]}: two places in files for the chunk at {start}")
            places[key] = (file_name, offset, length)
        return places

    def place(
        self, places: dict[Any, tuple[str, int, int]], name: str, start: tuple[int, ...] | None
    ) -> tuple[str, int, int]:
        try:
            return places.pop((name, start))
        except KeyError:
            chunk = "" if start is None else f", chunk at {start},"
            raise self.corrupt(f"{name[:200]}{chunk} has no place in any file") from None

    def sizes(self, name: str, value: object) -> tuple[int, ...]:
        if type(value) is list:
            value = tuple(value)
        # torch_size and the pickle reader leave other things than ints only where no Size stood
        if type(value) is not tuple or len(value) > torch_tensors.MAX_AXES:
            raise self.corrupt(f"{name[:200]}: a shape or offset that is not a tuple")
        for size in value:
            if type(size) is not int or not 0 <= size <= torch_tensors.MAX_ELEMENTS:
                raise self.corrupt(f"{name[:200]}: a shape or offset that is not made of sizes")
        return value

    def tensor(self, name: str, entry: Stub, places: dict[Any, tuple[str, int, int]]) -> DistTensor:
        shape = self.sizes(name, entry.get("size"))
        count = prod(shape)
        if count > torch_tensors.MAX_ELEMENTS:
            raise UnsafeCheckpoint(f"{self.where}: {name[:200]} has {count:,} elements")
        dtype = self.dtype(name, entry.get("properties"))
        listed = entry.get("chunks")
        if type(listed) is not list:
            raise self.corrupt(f"{name[:200]}: no list of chunks")
        chunks = []
        for part in listed:
            if _kind(part) != (METADATA, "ChunkStorageMetadata"):
                raise self.corrupt(f"{name[:200]}: a chunk of an unknown kind")
            start = self.sizes(name, part.get("offsets"))
            size = self.sizes(name, part.get("sizes"))
            place = self.place(places, name, start)
            # ranks without a share of a tensor may have written an empty chunk
            if count == 0 or 0 not in size:
                chunks.append(DistChunk(start, size, *place))
        problem = _tiling_problem(shape, [(chunk.start, chunk.shape) for chunk in chunks])
        if problem:
            raise self.corrupt(f"{name[:200]}: {problem}")
        return DistTensor(name, dtype, shape, tuple(chunks))

    def dtype(self, name: str, properties: object) -> DType:
        if _kind(properties) not in (
            (METADATA, "TensorProperties"),
            (_OLD_METADATA, "TensorProperties"),
        ):
            raise self.corrupt(f"{name[:200]}: no tensor properties")
        assert isinstance(properties, Stub)
        # torch writes a tuple: dtype, layout, requires_grad, memory format, pin_memory
        state = properties.state
        if type(state) is tuple and len(state) >= 2:
            dtype, layout = state[0], state[1]
        else:
            dtype, layout = properties.get("dtype"), properties.get("layout")
        if layout not in (None, "torch.strided"):
            raise UnsupportedError(f"{self.where}: {name[:200]} has the layout {brief(layout)}")
        if not isinstance(dtype, DType):
            raise UnsupportedError(
                f"{self.where}: {name[:200]} has a type that cannot be converted"
                f" ({getattr(dtype, 'name', 'unknown')})"
            )
        return dtype

    def check_files(self, tensors: Mapping[str, DistTensor], objects: Mapping[str, DistObject]) -> None:
        """Every item inside a file of the checkpoint, none over another."""
        items: dict[str, list[tuple[int, int, str]]] = {}
        for tensor in tensors.values():
            for chunk in tensor.chunks:
                items.setdefault(chunk.file_name, []).append((chunk.offset, chunk.length, tensor.name))
        for blob in objects.values():
            items.setdefault(blob.file_name, []).append((blob.offset, blob.length, blob.name))
        for file_name, places in items.items():
            size = self.file_size(file_name, places[0][2])
            places.sort()
            offset, length, name = max(places, key=lambda place: place[0] + place[1])
            if offset + length > size:
                raise CorruptCheckpoint(
                    f"{self.directory.path / _join(self.under, file_name)}: ends at byte {size:,},"
                    f" but .metadata places {name[:200]} at {offset:,}..{offset + length:,}",
                    hint="the copy looks cut short; compare its size with the original",
                )
            for (start, length, first), (after, _, second) in pairwise(places):
                if start + length > after:
                    refuse_safetensors(self.directory, _join(self.under, file_name))
                    raise self.corrupt(
                        f"{first[:200]} and {second[:200]} overlap in {file_name} at byte {after:,}"
                    )

    def file_size(self, file_name: str, name: str) -> int:
        # Only the size is needed: a checkpoint of thousands of ranks has too many files to open.
        if "/" in file_name or "\\" in file_name:
            raise UnsafeCheckpoint(
                f"{self.where}: {name[:200]} lies in {file_name!r:.200}, which is not a plain file name"
            )
        try:
            return self.directory.size(_join(self.under, file_name))
        except CorruptCheckpoint:
            raise CorruptCheckpoint(
                f"{self.directory.path / _join(self.under, file_name)}: missing,"
                f" but .metadata places {name[:200]} in it",
                hint="the copy is incomplete",
            ) from None

    def mcore_data(self, root: Stub) -> dict[str, dict[str, Any]]:
        data = root.get("mcore_data")
        if data is None:
            return {}
        if not isinstance(data, dict) or not all(
            type(key) is str and isinstance(value, dict) for key, value in data.items()
        ):
            raise self.corrupt("mcore_data is not a dictionary of dictionaries")
        check_bounded(data, f"{self.where}: mcore_data")
        return dict(data)


def _kind(value: object) -> tuple[str, str] | None:
    return value.kind if type(value) is Stub else None


def _transforms(value: object) -> str:
    return some(map(brief, value)) if isinstance(value, (list, tuple)) else brief(value)


def _writer(root: Stub) -> str:
    """Who wrote this, by the table of classes in the module's sources."""
    plans = root.get("all_local_plans")
    plan = _kind(plans[0]) if type(plans) is list and plans else None
    if root.kind == (_MCORE, "MCoreMetadata"):
        return "megatron-core 0.15 (MCoreMetadata)"
    if plan == (_MCORE, "MCoreSavePlan"):
        return "megatron-core 0.11 to 0.14 (MCoreSavePlan)"
    if plan == (_PLANNER, "SavePlan"):
        return "megatron-core 0.16 or later (SavePlan)"
    if root.get("mcore_data") is not None:
        return "megatron-core 0.9 to 0.12 (mcore_data)"
    return "torch (Metadata)"


# Tiling

Box = tuple[tuple[int, ...], tuple[int, ...]]


def _tiling_problem(shape: tuple[int, ...], boxes: list[Box]) -> str:
    """Why the boxes (start, size) do not tile a tensor of ``shape`` exactly; empty if they do."""
    axes = len(shape)
    volume = 0
    for start, size in boxes:
        if len(start) != axes or len(size) != axes:
            return f"a chunk with {len(start)} and {len(size)} axes in a tensor with {axes}"
        for first, count, whole in zip(start, size, shape, strict=True):
            if first + count > whole:
                return f"a chunk of {size} at {start}, outside the shape {shape}"
        volume += prod(size)
    total = prod(shape)
    if volume != total:
        kind = "less" if volume < total else "more"
        return f"its chunks hold {volume:,} elements, {kind} than the {total:,} of its shape {shape}"
    # As many elements as the tensor, all of them inside: they tile it unless two overlap.
    if total == 0 or _is_grid(shape, boxes):
        return ""
    return _overlap(boxes)


def _is_grid(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Whether the boxes are all cells of a grid, each once: what parallel training writes."""
    cells = 1
    for axis, whole in enumerate(shape):
        spans = sorted({(start[axis], size[axis]) for start, size in boxes})
        reached = 0
        for first, count in spans:
            if first != reached:
                return False
            reached += count
        if reached != whole:
            return False
        cells *= len(spans)
    return cells == len(boxes) == len({start for start, _ in boxes})


def _overlap(boxes: list[Box]) -> str:
    """Which two boxes overlap. Cuts the boxes apart along one axis after the other.

    Near-linear for anything cut by planes; the work is bounded, since nothing else is ever written.
    """
    work = 2_000_000 + 64 * len(boxes)
    groups = [boxes]
    while groups:
        group = groups.pop()
        if len(group) < 2:
            continue
        axes = len(group[0][0])
        for axis in range(axes):
            work -= len(group)
            group.sort(key=lambda box, axis=axis: box[0][axis])  # type: ignore[misc]
            parts: list[list[Box]] = []
            reached = -1
            for box in group:
                if box[0][axis] >= reached:
                    parts.append([])
                parts[-1].append(box)
                reached = max(reached, box[0][axis] + box[1][axis])
            if len(parts) > 1:
                groups += parts
                break
        else:
            work -= len(group) ** 2
            if work > 0:
                for at, (start, size) in enumerate(group):
                    for other, extent in group[:at]:
                        if all(
                            a < b + n and b < a + m
                            for a, m, b, n in zip(start, size, other, extent, strict=True)
                        ):
                            return f"its chunks at {other} and {start} overlap"
        if work <= 0:
            return "its chunks are cut too irregularly to be checked"
    return ""


# Reading .distcp


def refuse_safetensors(directory: Folder, name: str) -> None:
    """Raise UnsupportedFormat if a ``.distcp`` is a safetensors file.

    torch writes such files with ``SerializationFormat.SAFETENSORS``, but places every tensor at
    offset 0 and cannot load them itself.
    """
    file = directory.file(name)
    if file.size > 9 and file.pread(9, 0)[8:] == b"{":
        raise UnsupportedFormat(
            f"{file.path}: written with SerializationFormat.SAFETENSORS, which torch cannot load",
            hint="save it with the default serialization format",
        )


def read_chunk(directory: Folder, tensor: DistTensor, chunk: DistChunk, under: str = "") -> Extent:
    """Where the elements of a chunk lie, from its archive; reads no payload."""
    name = _join(under, chunk.file_name)
    file = directory.file(name)
    try:
        stored = torch_zip.locate(file, chunk.offset, chunk.length, tensor.name[:200])
    except CorruptCheckpoint:
        refuse_safetensors(directory, name)
        raise
    if stored.dtype is not tensor.dtype or stored.shape != chunk.shape:
        raise CorruptCheckpoint(
            f"{file.path}: item at byte {chunk.offset:,} is {stored.dtype} of shape {stored.shape},"
            f" but .metadata says that {tensor.name[:200]}, chunk at {chunk.start}, is"
            f" {tensor.dtype} of shape {chunk.shape}",
            hint="the file may belong to another checkpoint",
        )
    itemsize = stored.dtype.itemsize
    strides = tuple(step * itemsize for step in stored.strides)
    return Extent(file, stored.offset, chunk.start, chunk.shape, strides)
