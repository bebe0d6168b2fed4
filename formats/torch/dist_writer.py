"""Writing torch_dist's ``.metadata``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import pickle_writer as opcodes
from .dist import FILESYSTEM, METADATA, DistChunk, DistObject, DistTensor
from .pickle_writer import PickleWriter


def emit_metadata(
    tensors: Iterable[DistTensor],
    objects: Iterable[DistObject] = (),
    flattened: Mapping[str, tuple[int, ...]] | None = None,
) -> bytes:
    """The bytes of a ``.metadata`` file; the same input gives the same bytes.

    A plain torch ``Metadata`` with no Megatron class, storage_meta or planner_data: what torch and
    every megatron-core since 0.9 can read, and it names no path of the writer. ``flattened`` gives the
    true shapes of tensors whose last axis is a flattened chunk, which go into ``mcore_data``.
    """
    tensors, objects = tuple(tensors), tuple(objects)
    writer = PickleWriter()
    raw, fetch, text, name = writer.raw, writer.fetch, writer.text, writer.name
    mark, build = opcodes.MARK, opcodes.SETITEMS + opcodes.BUILD
    new = opcodes.NEW + opcodes.EMPTY_DICT + opcodes.MARK
    integer = opcodes.integer

    def size(values: tuple[int, ...]) -> bytes:
        return fetch(("torch", "Size")) + opcodes.integers(values) + opcodes.TUPLE1 + opcodes.REDUCE

    name(METADATA, "Metadata")
    raw(new)
    text("state_dict_metadata")
    raw(opcodes.EMPTY_DICT + mark)
    for tensor in tensors:
        text(tensor.name)
        name(METADATA, "TensorStorageMetadata")
        raw(new)
        text("properties")
        name(METADATA, "TensorProperties")
        raw(opcodes.NEW + mark)
        name("torch", tensor.dtype.name)
        name("torch.serialization", "_get_layout")
        text("torch.strided")
        raw(opcodes.TUPLE1 + opcodes.REDUCE + opcodes.FALSE)
        name(METADATA, "_MEM_FORMAT_ENCODING")
        raw(integer(0) + opcodes.TUPLE1 + opcodes.REDUCE + opcodes.FALSE)
        raw(opcodes.TUPLE + opcodes.BUILD)
        text("size")
        raw(size(tensor.shape))
        text("chunks")
        raw(opcodes.EMPTY_LIST + mark)
        for chunk in tensor.chunks:
            raw(fetch((METADATA, "ChunkStorageMetadata")) + new)
            raw(fetch("offsets") + size(chunk.start))
            raw(fetch("sizes") + size(chunk.shape) + build)
        raw(opcodes.APPENDS + build)
    for blob in objects:
        text(blob.name)
        name(METADATA, "BytesStorageMetadata")
        raw(opcodes.NEW)
    raw(opcodes.SETITEMS)
    text("planner_data")
    raw(opcodes.NONE)
    text("storage_data")
    raw(opcodes.EMPTY_DICT + mark)

    def place(item_name: str, start: tuple[int, ...] | None, item: DistChunk | DistObject) -> None:
        raw(fetch((METADATA, "MetadataIndex")) + new)
        raw(fetch("fqn") + fetch(item_name))
        raw(fetch("offset") + (opcodes.NONE if start is None else size(start)))
        raw(fetch("index") + opcodes.NONE + build)
        raw(fetch((FILESYSTEM, "_StorageInfo")) + new)
        raw(fetch("relative_path") + fetch(item.file_name))
        raw(fetch("offset") + integer(item.offset))
        raw(fetch("length") + integer(item.length) + build)

    for tensor in tensors:
        for chunk in tensor.chunks:
            place(tensor.name, chunk.start, chunk)
    for blob in objects:
        place(blob.name, None, blob)
    raw(opcodes.SETITEMS)
    text("storage_meta")
    raw(opcodes.NONE)
    if flattened:
        text("mcore_data")
        raw(opcodes.EMPTY_DICT + mark)
        for key, shape in flattened.items():
            text(key)
            raw(opcodes.EMPTY_DICT + mark)
            text("nd_reformulated_orig_global_shape")
            raw(opcodes.integers(shape) + opcodes.SETITEMS)
        raw(opcodes.SETITEMS)
    text("version")
    raw(opcodes.NONE + build)
    return writer.finish()
