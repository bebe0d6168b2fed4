"""torch_dist directories: real ones are read, ours load in torch and Megatron, lies are refused."""

from __future__ import annotations

import io
import json
import pickle
import random
import time
from dataclasses import replace
from pathlib import Path

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zlib_ng import zlib_ng

from nemoconv.errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedError,
    UnsupportedFormat,
)
from nemoconv.formats.torch import common as torch_common
from nemoconv.formats.torch import dist as torch_dist
from nemoconv.formats.torch import dist_writer as torch_dist_writer
from nemoconv.formats.torch import items as torch_items
from nemoconv.formats.torch import zip as torch_zip
from nemoconv.formats.torch.dist import DistChunk, DistObject, DistTensor
from nemoconv.stores.files import SourceDir
from nemoconv.tensors.dtypes import BY_NAME

NEMO2 = Path(__file__).parents[3] / "fixtures" / "nemo2"
BF16, F32 = BY_NAME["bfloat16"], BY_NAME["float32"]
REAL = {
    "nemo_tp1pp1/weights": (9, 21, "megatron-core 0.11 to 0.14 (MCoreSavePlan)"),
    "nemo_tp2pp1/weights": (9, 21, "megatron-core 0.11 to 0.14 (MCoreSavePlan)"),
    "mcore0140_optim_dp2": (36, 11, "megatron-core 0.11 to 0.14 (MCoreSavePlan)"),
    "mcore0161_tp2": (9, 17, "megatron-core 0.16 or later (SavePlan)"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_checkpoints(name):
    directory = SourceDir(NEMO2 / name)
    assert torch_dist.read_backend(directory) == "torch_dist"
    metadata = torch_dist.read_metadata(directory)
    assert (len(metadata.tensors), len(metadata.objects), metadata.writer) == REAL[name]
    assert metadata.notes == ()
    for tensor in metadata.tensors.values():
        for chunk in tensor.chunks:
            extent = torch_dist.read_chunk(directory, tensor, chunk)
            assert (extent.start, extent.shape) == (chunk.start, chunk.shape)
            torch_zip.verify_crc(extent.file, chunk.offset, chunk.length)
    for blob in metadata.objects.values():
        file = directory.file(blob.file_name)
        torch_common.read_object(file.pread(blob.length, blob.offset), where=blob.name)


def test_real_values():
    """Rows of the embedding at TP 2 are those of the Hugging Face model."""
    header = (NEMO2 / "hf_llama" / "model.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    entry = json.loads(header[8 : 8 + size])["model.embed_tokens.weight"]
    first, last = (8 + size + at for at in entry["data_offsets"])
    directory = SourceDir(NEMO2)
    metadata = torch_dist.read_metadata(directory, "mcore0161_tp2")
    tensor = metadata.tensors["module.embedding.word_embeddings.weight"]
    rows = {}
    for chunk in tensor.chunks:
        extent = torch_dist.read_chunk(directory, tensor, chunk, "mcore0161_tp2")
        assert extent.strides == (256, 2)
        rows[extent.start[0]] = extent.file.pread(extent.shape[0] * 256, extent.offset)
    assert sorted(rows) == [0, 500]
    assert rows[0] + rows[500] == header[first:last]


def test_flattened_optimizer_state():
    metadata = torch_dist.read_metadata(SourceDir(NEMO2 / "mcore0140_optim_dp2"))
    name = "optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc1.weight"
    assert metadata.tensors[name].shape == (2, 2, 1, 6144)
    assert metadata.mcore_data[name] == {"nd_reformulated_orig_global_shape": (2, 192, 64)}


# What we write


def write(path, values, objects=()):
    """A directory with {name: (dtype, shape, [(start, size, bytes)])} in __0_0.distcp."""
    path.mkdir(exist_ok=True)
    tensors, blobs = [], []
    with (path / "__0_0.distcp").open("wb") as out:
        for name, value in objects:
            data = torch_items.object_item(value)
            blobs.append(DistObject(name, "__0_0.distcp", out.tell(), len(data)))
            out.write(data)
        for name, (dtype, shape, parts) in values.items():
            chunks = []
            for start, size, raw in parts:
                item = torch_items.TensorItem(dtype, size, out.tell())
                chunks.append(DistChunk(start, size, "__0_0.distcp", item.offset, item.length))
                crc = zlib_ng.crc32(raw)
                out.write(item.header(crc) + raw + item.trailer(crc))
            tensors.append(DistTensor(name, dtype, shape, tuple(chunks)))
    (path / "metadata.json").write_bytes(torch_dist.METADATA_JSON)
    (path / "common.pt").write_bytes(torch_items.object_item({}))
    (path / ".metadata").write_bytes(torch_dist_writer.emit_metadata(tensors, blobs))
    return tensors, blobs


def raw_bytes(count, seed=0):
    return random.Random(seed).randbytes(count)


QKV = "module.decoder.layers.self_attention.linear_qkv.weight"
VALUES = {
    QKV: (
        *(BF16, (2, 4, 3)),
        [((layer, 0, 0), (1, 4, 3), raw_bytes(24, layer)) for layer in range(2)],
    ),
    "module.decoder.final_layernorm.weight": (F32, (5,), [((0,), (5,), raw_bytes(20))]),
    "module.step": (BY_NAME["int64"], (), [((), (), raw_bytes(8))]),
    "module.none": (BF16, (0, 3), [((0, 0), (0, 3), b"")]),
    "module.scale": (BY_NAME["float8_e4m3fn"], (2, 2), [((0, 0), (2, 2), raw_bytes(4))]),
}
OBJECTS = [("module.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2", [None])]


def test_what_is_written_is_read(tmp_path):
    tensors, blobs = write(tmp_path / "w", VALUES, OBJECTS)
    metadata = torch_dist.read_metadata(SourceDir(tmp_path), "w")
    assert list(metadata.tensors.values()) == tensors
    assert list(metadata.objects.values()) == blobs
    assert (metadata.writer, metadata.notes) == ("torch (Metadata)", ())
    assert torch_dist_writer.emit_metadata(tensors, blobs) == torch_dist_writer.emit_metadata(tensors, blobs)
    assert torch_dist_writer.emit_metadata(tensors) != torch_dist_writer.emit_metadata(tensors, blobs)


def test_torch_loads_it(tmp_path):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp

    write(tmp_path / "w", VALUES, OBJECTS)
    state = {
        name: torch.empty(shape, dtype=getattr(torch, dtype.name))
        for name, (dtype, shape, _) in VALUES.items()
    }
    state[OBJECTS[0][0]] = io.BytesIO()
    dcp.load(state, checkpoint_id=tmp_path / "w", no_dist=True)
    for name, (_, _, parts) in VALUES.items():
        raw = bytes(state[name].reshape(-1).view(torch.uint8).tolist()) if parts[0][2] else b""
        assert raw == b"".join(part for *_, part in parts)
    assert state[OBJECTS[0][0]] == [None]
    root = pickle.loads((tmp_path / "w" / ".metadata").read_bytes())
    assert type(root).__module__ == "torch.distributed.checkpoint.metadata"
    assert root.state_dict_metadata[QKV].properties.dtype is torch.bfloat16


def test_megatron_loads_it(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("megatron.core")
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    write(tmp_path / "w", VALUES, OBJECTS)
    if not torch.distributed.is_initialized():
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        # Megatron waits for a GPU that is not there
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
        state = {
            f"layer{layer}": ShardedTensor.from_rank_offsets(
                QKV, torch.empty(4, 3, dtype=torch.bfloat16), (0, layer, 2), prepend_axis_num=1
            )
            for layer in range(2)
        }
        got = dist_checkpointing.load(state, str(tmp_path / "w"))
    finally:
        torch.distributed.destroy_process_group()
    for layer in range(2):
        raw = bytes(got[f"layer{layer}"].reshape(-1).view(torch.uint8).tolist())
        assert raw == raw_bytes(24, layer)


def test_torch_writes_it(tmp_path):
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp

    state = {"a": torch.arange(6).reshape(2, 3).t(), "b": {"c": torch.ones(3)}, "n": 5}
    dcp.save(state, checkpoint_id=tmp_path / "w", no_dist=True)
    directory = SourceDir(tmp_path / "w")
    metadata = torch_dist.read_metadata(directory)
    assert (set(metadata.tensors), set(metadata.objects)) == ({"a", "b.c"}, {"n"})
    tensor = metadata.tensors["a"]
    assert torch_dist.read_chunk(directory, tensor, tensor.chunks[0]).strides == (8, 24)


# Lies


def place(start, size, at=0, file_name="__0_0.distcp", length=100):
    return DistChunk(start, size, file_name, at * 100, length)


def lie(*chunks, dtype=BF16, shape=(4, 6), objects=(), name="t"):
    return torch_dist_writer.emit_metadata([DistTensor(name, dtype, shape, chunks)], objects)


WHOLE = place((0, 0), (4, 6))
PINWHEEL = [
    ((0, 0), (1, 2)),
    ((0, 2), (2, 1)),
    ((2, 1), (1, 2)),
    ((1, 0), (2, 1)),
    ((1, 1), (1, 1)),
]
LIES = {
    "rows missing": (
        *(lie(place((0, 0), (3, 6))), CorruptCheckpoint),
        "t: its chunks hold 18 elements, less than the 24 of its shape (4, 6)",
    ),
    "no chunks": (lie(), CorruptCheckpoint, "t: its chunks hold 0 elements, less than the 24"),
    "outside": (
        *(lie(place((1, 0), (4, 6))), CorruptCheckpoint),
        "t: a chunk of (4, 6) at (1, 0), outside the shape (4, 6)",
    ),
    "axes": (
        *(lie(place((0,), (24,))), CorruptCheckpoint),
        "t: a chunk with 1 and 1 axes in a tensor with 2",
    ),
    "overlap and hole": (
        *(lie(place((0, 0), (3, 6)), place((2, 0), (1, 6), 1)), CorruptCheckpoint),
        "t: its chunks at (0, 0) and (2, 0) overlap",
    ),
    "too many": (
        *(lie(WHOLE, place((1, 0), (1, 6), 1)), CorruptCheckpoint),
        "t: its chunks hold 30 elements, more than the 24",
    ),
    "same chunk twice": (
        *(lie(WHOLE, place((0, 0), (4, 6), 1)), CorruptCheckpoint),
        "t: two places in files for the chunk at (0, 0)",
    ),
    "same bytes twice": (
        *(lie(place((0, 0), (2, 6)), place((2, 0), (2, 6))), CorruptCheckpoint),
        "t and t overlap in __0_0.distcp at byte 0",
    ),
    "object over tensor": (
        *(lie(WHOLE, objects=[DistObject("o", "__0_0.distcp", 50, 100)]), CorruptCheckpoint),
        "t and o overlap in __0_0.distcp at byte 50",
    ),
    "beyond the file": (
        *(lie(replace(WHOLE, offset=950)), CorruptCheckpoint),
        "__0_0.distcp: ends at byte 1,000, but .metadata places t at 950..1,050; the copy looks",
    ),
    "huge offset": (
        lie(replace(WHOLE, offset=1 << 70)),
        CorruptCheckpoint,
        "ends at byte 1,000, but",
    ),
    "negative offset": (
        *(lie(replace(WHOLE, offset=-1)), CorruptCheckpoint),
        "t: placed at offset -1, 100 bytes",
    ),
    "no length": (
        lie(replace(WHOLE, length=0)),
        CorruptCheckpoint,
        "t: placed at offset 0, 0 bytes",
    ),
    "missing file": (
        *(lie(replace(WHOLE, file_name="__9_0.distcp")), CorruptCheckpoint),
        "__9_0.distcp: missing, but .metadata places t in it; the copy is incomplete",
    ),
    "traversal": (
        *(lie(replace(WHOLE, file_name="../secret")), UnsafeCheckpoint),
        "t lies in '../secret', which is not a plain file name",
    ),
    "parent": (
        *(lie(replace(WHOLE, file_name="..")), UnsafeCheckpoint),
        "refers to the file '..', which is not a plain relative name",
    ),
    "absolute": (
        lie(replace(WHOLE, file_name="/etc/passwd")),
        UnsafeCheckpoint,
        "not a plain file",
    ),
    "symlink": (
        *(lie(replace(WHOLE, file_name="link.distcp")), UnsafeCheckpoint),
        "leads outside the checkpoint",
    ),
    "directory": (lie(replace(WHOLE, file_name="sub")), UnsafeCheckpoint, "not a regular file"),
    "elements": (
        *(lie(WHOLE, shape=(1 << 30, 1 << 30)), UnsafeCheckpoint),
        "t has 1,152,921,504,606,846,976 elements",
    ),
    "negative shape": (
        *(lie(WHOLE, shape=(-4, -6)), CorruptCheckpoint),
        "t: a shape or offset that is not made of sizes",
    ),
    "evil": (
        *(hostile.call("os", "system"), UnsafeCheckpoint),
        ".metadata: names os.system, which no checkpoint of this kind needs",
    ),
    "not metadata": (
        *(pickle.dumps({"a": 1}), CorruptCheckpoint),
        ".metadata: does not hold the metadata of a distributed checkpoint",
    ),
    "list bomb": (hostile.list_bomb(), CorruptCheckpoint, "does not hold the metadata"),
    "control characters": (
        *(lie(place((0, 0), (3, 6)), name="t\x1b[2J\n"), CorruptCheckpoint),
        "t\\x1b[2J\\n: its chunks hold",
    ),
}


def directory_of(path, data):
    (path / "w" / "sub").mkdir(parents=True)
    (path / "w" / "__0_0.distcp").write_bytes(bytes(1000))
    (path / "secret").write_bytes(bytes(1000))
    (path / "w" / "link.distcp").symlink_to(path / "secret")
    (path / "w" / ".metadata").write_bytes(data)
    return SourceDir(path / "w")


@pytest.mark.parametrize(("data", "error", "words"), LIES.values(), ids=LIES)
def test_lies(data, error, words, tmp_path):
    with pytest.raises(NemoconvError) as caught:
        torch_dist.read_metadata(directory_of(tmp_path, data))
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def swap(old, new):
    data = lie(WHOLE)
    assert old in data
    return data.replace(old, new)


def test_other_lies(tmp_path):
    directory_of(tmp_path, b"")
    path = tmp_path / "w" / ".metadata"

    def message(data, error):
        path.write_bytes(data)
        directory = SourceDir(tmp_path / "w")
        with pytest.raises(NemoconvError) as caught:
            torch_dist.read_metadata(directory)
        assert type(caught.value) is error
        return str(caught.value)

    text = b"X\x15\x00\x00\x00transform_descriptors]X\x0b\x00\x00\x00stream.zstda"
    at = lie(WHOLE).rindex(b"Kdub")
    data = lie(WHOLE)[: at + 2] + text + lie(WHOLE)[at + 2 :]
    assert "t was written through a transform ('stream.zstd')" in message(data, UnsupportedError)
    data = swap(b"bfloat16", b"complex64")
    assert "t has a type that cannot be converted (torch.complex64)" in message(data, UnsupportedError)
    data = swap(b"torch.strided", b"torch.sparse_")
    assert "t has the layout 'torch.sparse_'" in message(data, UnsupportedError)
    # deep values must not reach a repr
    deep = b"]" * 9000 + b"a" * 8999
    at = lie(WHOLE).rindex(b"Kdub")
    data = lie(WHOLE)[:at] + deep + lie(WHOLE)[at + 2 :]
    assert "t: placed at offset 0, a list bytes" in message(data, CorruptCheckpoint)
    data = swap(b"chunks", b"chunkz")
    assert "t: no list of chunks" in message(data, CorruptCheckpoint)
    # the place belongs to another tensor
    data = lie(WHOLE)
    at = data.rindex(b"X\x03\x00\x00\x00fqn")
    end = data.index(b"h", at)
    data = data[:end] + b"X\x01\x00\x00\x00u" + data[end + 2 :]
    assert "t, chunk at (0, 0), has no place in any file" in message(data, CorruptCheckpoint)


@pytest.mark.parametrize(
    ("old", "new", "writer"),
    [
        (
            b"ctorch.distributed.checkpoint.metadata\nMetadata\n",
            b"cmegatron.core.dist_checkpointing.strategies.torch\nMCoreMetadata\n",
            "megatron-core 0.15 (MCoreMetadata)",
        ),
        (
            b"ctorch.distributed.checkpoint.metadata\nTensorProperties\n",
            b"ctorch.distributed._shard.sharded_tensor.metadata\nTensorProperties\n",
            "torch (Metadata)",
        ),
        (
            b"X\x0c\x00\x00\x00storage_metaq\x1aN",
            b"X\x0a\x00\x00\x00mcore_dataq\x1a}",
            "megatron-core 0.9 to 0.12 (mcore_data)",
        ),
        (
            b"X\x0c\x00\x00\x00storage_metaq\x1aN",
            b"X\x0c\x00\x00\x00storage_metaq\x1acpathlib\nPosixPath\nX\x01\x00\x00\x00/\x85R",
            "torch (Metadata)",
        ),
    ],
)
def test_classes_of_other_versions(old, new, writer, tmp_path):
    metadata = torch_dist.read_metadata(directory_of(tmp_path, swap(old, new)))
    assert metadata.writer == writer
    assert list(metadata.tensors.values()) == [DistTensor("t", BF16, (4, 6), (WHOLE,))]


def test_missing_metadata(tmp_path):
    (tmp_path / ".metadata.tmp").write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=r"the save was interrupted; use the checkpoint bef"):
        torch_dist.read_metadata(SourceDir(tmp_path))
    (tmp_path / ".metadata.tmp").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"\.metadata: missing; the copy is incomplete"):
        torch_dist.read_metadata(SourceDir(tmp_path))


def test_safetensors_serialization_is_refused_by_name(tmp_path):
    chunks = (place((0, 0), (2, 6)), place((2, 0), (2, 6)))
    directory = directory_of(tmp_path, lie(*chunks))
    (tmp_path / "w" / "__0_0.distcp").write_bytes(b"\x10\0\0\0\0\0\0\0{" + bytes(991))
    with pytest.raises(UnsupportedFormat, match=r"written with SerializationFormat.SAFETENSORS, wh"):
        torch_dist.read_metadata(directory)
    with pytest.raises(UnsupportedFormat, match="SAFETENSORS"):
        torch_dist.read_chunk(directory, DistTensor("t", BF16, (4, 6), chunks), chunks[0])


def test_foreign_shard(tmp_path):
    write(tmp_path / "w", {"t": (F32, (2, 3), [((0, 0), (2, 3), bytes(24))])})
    directory = SourceDir(tmp_path / "w")
    tensor = torch_dist.read_metadata(directory).tensors["t"]
    for lying in (replace(tensor, dtype=BF16), replace(tensor, chunks=())):
        chunk = replace(tensor.chunks[0], shape=(2, 3) if lying.chunks else (3, 2))
        with pytest.raises(CorruptCheckpoint) as caught:
            torch_dist.read_chunk(directory, lying, chunk)
        assert "item at byte 0 is float32 of shape (2, 3), but .metadata says that t, chunk" in str(
            caught.value
        )
        assert str(caught.value).endswith("the file may belong to another checkpoint")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b'{"sharded_backend": "zarr"}', UnsupportedFormat, "sharded_backend is 'zarr', but only"),
        (b'{"sharded_backend": "torch_dist", "x": 1}', UnsupportedFormat, "unknown key 'x'"),
        (
            b'{"sharded_backend": "torch_dist", "sharded_backend_version": 2}',
            UnsupportedFormat,
            "sharded_backend_version is 2, but only 1 can be read; convert it to torch_dist",
        ),
        (b'{"common_backend": "torch"}', CorruptCheckpoint, "names no sharded_backend"),
        (b'{"sharded_backend": "a", "sharded_backend": "b"}', CorruptCheckpoint, "metadata.json"),
        (b"[" * 60000, UnsafeCheckpoint, "metadata.json"),
        (b"[]", CorruptCheckpoint, "metadata.json"),
        (b"\xff", CorruptCheckpoint, "metadata.json"),
        (b" " * 70000, UnsafeCheckpoint, "more than the 65,536 allowed"),
    ],
)
def test_backend(text, error, words, tmp_path):
    (tmp_path / "metadata.json").write_bytes(text)
    with pytest.raises(NemoconvError) as caught:
        torch_dist.read_backend(SourceDir(tmp_path))
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_backend_missing(tmp_path):
    with pytest.raises(CorruptCheckpoint, match=r"metadata\.json: missing; it is written last"):
        torch_dist.read_backend(SourceDir(tmp_path))


# Tiling


def problem(shape, boxes):
    return torch_dist._tiling_problem(shape, list(boxes))


def put(values, axis, value):
    return (*values[:axis], value, *values[axis + 1 :])


@st.composite
def tilings(draw):
    """A box cut by planes again and again: not always a grid."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 12)) if shape else 0):
        start, size = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        cut = draw(st.integers(0, size[axis]))
        if 0 < cut < size[axis]:
            left = put(size, axis, cut)
            right = put(size, axis, size[axis] - cut)
            after = put(start, axis, start[axis] + cut)
            boxes += [(start, left), (after, right)]
        else:
            boxes.append((start, size))
    return shape, draw(st.permutations(boxes))


@settings(max_examples=200, deadline=None)
@given(tilings(), st.data())
def test_tilings(tiling, data):
    shape, boxes = tiling
    assert problem(shape, boxes) == ""
    if shape:
        at = data.draw(st.integers(0, len(boxes) - 1))
        axis = data.draw(st.integers(0, len(shape) - 1))
        start, size = boxes[at]
        moved = put(start, axis, data.draw(st.integers(0, 6)))
        assert bool(problem(shape, [*boxes[:at], (moved, size), *boxes[at + 1 :]])) == (moved != start)


def test_pinwheel():
    assert problem((3, 3), PINWHEEL) == ""
    assert "overlap" in problem((3, 3), [*PINWHEEL[:4], ((0, 0), (1, 1))])


def test_tiling_is_checked_in_bounded_time():
    size = 12_288
    cuts = [((n, 0), (1, 100 + n % 7)) for n in range(size)]
    cuts += [((n, 100 + n % 7), (1, 100 - n % 7)) for n in range(size)]
    random.Random(0).shuffle(cuts)
    start = time.process_time()
    assert problem((size, 200), cuts) == ""
    # no plane cuts these apart: n**2 pairs are too many to look at
    spokes = [((n, 2 * n), (size - n, 1)) for n in range(size)]
    spokes += [((n + 1, 0), (1, 1)) for n in range(size)]
    assert "too irregularly" in torch_dist._overlap([((0, 0), (size, 3 * size))] * size + spokes)
    assert time.process_time() - start < 3


def test_speed(tmp_path):
    """12,288 chunks: measured 0.23 CPU-s to read and 0.06 to write; these are generous bounds."""
    layers = 128
    chunks = [
        tuple(place((n, 0), (1, 8), i * layers + n, f"__{n % 4}_0.distcp") for n in range(layers))
        for i in range(96)
    ]
    tensors = [DistTensor(f"t{i}", BF16, (layers, 8), part) for i, part in enumerate(chunks)]
    start = time.process_time()
    (tmp_path / ".metadata").write_bytes(torch_dist_writer.emit_metadata(tensors))
    assert time.process_time() - start < 1
    for n in range(4):
        with (tmp_path / f"__{n}_0.distcp").open("wb") as out:
            out.truncate(12_288 * 100)
    start = time.process_time()
    metadata = torch_dist.read_metadata(SourceDir(tmp_path))
    assert time.process_time() - start < 2.5
    assert list(metadata.tensors.values()) == tensors


@settings(max_examples=150, deadline=2000)
@given(number=st.integers(0, 2**32))
def test_damage_gives_a_clean_error(number, tmp_path_factory):
    seed = random.Random(number)
    raw = bytearray(lie(WHOLE))
    for _ in range(seed.randint(1, 3)):
        at = seed.randrange(len(raw))
        raw[at : at + seed.randint(0, 2)] = seed.randbytes(seed.randint(0, 2))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.mkdir(exist_ok=True)
    (path / ".metadata").write_bytes(raw)
    (path / "__0_0.distcp").write_bytes(bytes(1000))
    directory = SourceDir(path)
    try:
        torch_dist.read_metadata(directory)
    except NemoconvError as error:
        message = str(error)
    else:
        message = ""
    directory.close()
    assert "\n" not in message
