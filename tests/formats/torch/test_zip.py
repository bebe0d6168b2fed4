"""torch.save archives: read what torch writes, write what torch reads, refuse lies."""

from __future__ import annotations

import io
import itertools
import random
import struct
import zipfile
from math import prod
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
    UsageError,
)
from nemoconv.formats.torch import common as torch_common
from nemoconv.formats.torch import items as torch_items
from nemoconv.formats.torch import zip as torch_zip
from nemoconv.formats.torch.pickles import Stub
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME

torch = pytest.importorskip("torch")


NEMO2 = Path(__file__).parents[3] / "fixtures" / "nemo2"
SHAPES = [(), (0,), (5,), (3, 0, 2), (3, 4), (2, 3, 4), (2, 1, 3, 2)]
#: float32 and bfloat16 patterns that arithmetic would change: NaN with payload, -0.0, subnormals
SPECIAL = bytes.fromhex("0100c07f0000008001000000010080ffffff7f000080c17f")


def payload(dtype, shape):
    count = prod(shape) * dtype.itemsize
    if dtype.name == "bool":
        return bytes(index % 2 for index in range(count))
    return (SPECIAL + bytes(range(256)) * (count // 256 + 1))[:count]


def bits(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def emit(dtype, shape, offset=0, alignment=64):
    item = torch_items.TensorItem(dtype, shape, offset, alignment)
    raw = payload(dtype, shape)
    crc = zlib_ng.crc32(raw)
    data = item.header(crc) + raw + item.trailer(crc)
    assert len(data) == item.length
    assert item.payload_offset == offset + len(item.header(crc))
    assert item.payload_offset % alignment == 0
    return data


def save(tmp_path, value, before=b"x" * 777):
    """The file that holds ``value`` as torch saves it, behind 777 other bytes; its place there."""
    out = io.BytesIO()
    torch.save(value, out)
    return put(tmp_path, out.getvalue(), before)


def put(tmp_path, data, before=b"x" * 777):
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(before + data + b"behind")
    return SourceFile(path), len(before), len(data)


def read_back(file, stored):
    """The elements of a located tensor in C order, gathered one by one."""
    size, out = stored.dtype.itemsize, bytearray()
    for index in itertools.product(*map(range, stored.shape)):
        at = sum(i * step for i, step in zip(index, stored.strides, strict=True))
        out += file.pread(size, stored.offset + at * size)
    return bytes(out)


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_reads_what_is_written(dtype, shape, tmp_path):
    for offset, alignment in ((0, 64), (777, 4096), (13, 1)):
        data = emit(dtype, shape, offset, alignment)
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
        for weights_only in (True, False):
            tensor = torch.load(io.BytesIO(data), weights_only=weights_only)
            assert tensor.dtype == getattr(torch, dtype.name)
            assert tuple(tensor.shape) == shape
            assert tensor.is_contiguous()
            assert not prod(shape) or bits(tensor) == payload(dtype, shape)
        file, at, length = put(tmp_path, data, b"x" * offset)
        stored = torch_zip.locate(file, at, length)
        assert (stored.dtype, stored.shape) == (dtype, shape)
        assert file.pread(stored.record_nbytes, stored.offset) == payload(dtype, shape)
        assert torch_zip.verify_crc(file, at, length) > 0


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_locates_what_torch_writes(dtype, shape, tmp_path):
    raw = payload(dtype, shape)
    flat = torch.tensor(list(raw), dtype=torch.uint8)
    tensor = flat.view(getattr(torch, dtype.name)).reshape(shape)
    file, at, length = save(tmp_path, tensor)
    stored = torch_zip.locate(file, at, length)
    assert (stored.dtype, stored.shape) == (dtype, shape)
    assert file.pread(len(raw), stored.offset) == raw
    assert stored.crc32 == zlib_ng.crc32(raw)
    torch_zip.verify_crc(file, at, length)


BASE = torch.arange(120, dtype=torch.int32).reshape(4, 5, 6)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE[0].t(),
        BASE.permute(2, 0, 1),
        BASE[1:, :, 2],
        BASE[2],
        BASE[:, ::2, 1::3],
        BASE[3, 4, 5],
        torch.nn.Parameter(BASE.float()),
        torch.nn.Parameter(BASE.float().permute(1, 0, 2)[2:]),
        BASE[:, :1].expand(4, 1, 6),
        BASE.to(torch.uint16)[1:, 2:],
    ],
)
def test_views_and_parameters(tensor, tmp_path):
    file, at, length = save(tmp_path, tensor)
    stored = torch_zip.locate(file, at, length)
    assert stored.shape == tuple(tensor.shape)
    assert read_back(file, stored) == bits(tensor.detach())


def test_old_torch_format_without_the_newer_records(tmp_path):
    data = hostile.archive(hostile.tensor_pickle(), root="any name")
    stored = torch_zip.locate(*put(tmp_path, data))
    assert (stored.shape, stored.record_nbytes) == ((2, 3), 24)


def test_real_checkpoints_have_sound_checksums():
    for path in sorted((NEMO2 / "mcore0161_tp2").glob("common.pt")):
        file = SourceFile(path)
        assert torch_zip.verify_crc(file, 0, file.size) > 100
        value = torch_common.read_object(path.read_bytes(), where=str(path))
        assert value == torch.load(path, weights_only=True)


def test_common_with_tensors_and_objects(tmp_path):
    numpy = pytest.importorskip("numpy")
    import argparse

    value = {
        "t": torch.arange(6).reshape(2, 3),
        "args": argparse.Namespace(a=1, dtype=torch.bfloat16),
        "rng": numpy.random.default_rng(0).random(3),
        "size": torch.Size([1, 2]),
    }
    out = io.BytesIO()
    torch.save(value, out)
    got = torch_common.read_object(out.getvalue(), where="common.pt")
    assert (got["t"].shape, got["t"].dtype) == ((2, 3), BY_NAME["int64"])
    assert isinstance(got["args"], Stub)
    assert (got["args"].get("a"), got["args"].get("dtype")) == (1, BY_NAME["bfloat16"])
    assert isinstance(got["rng"], Stub)
    assert got["size"] == (1, 2)


def test_objects():
    value = {"a": [None, 1, 1 << 40, -1, 1.5, True, "x", ("y", 2)], "b": {}}
    data = torch_items.object_item(value)
    assert data == torch_items.object_item(value)
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    for weights_only in (True, False):
        assert torch.load(io.BytesIO(data), weights_only=weights_only) == value
    assert torch_common.read_object(data, where="x") == value
    with pytest.raises(UnsupportedError, match="a value of type set cannot be written"):
        torch_items.object_item({1})


def test_alignment():
    with pytest.raises(UsageError, match="alignment 48 is not a power of two up to 32768"):
        torch_items.TensorItem(BY_NAME["int8"], (1,), 0, 48)


def test_zip64(tmp_path):
    """A sparse item of 5 GiB: only its header and trailer are written."""
    item = torch_items.TensorItem(BY_NAME["uint8"], (5 << 30,), 100)
    path = tmp_path / "big"
    with path.open("wb") as out:
        out.seek(100)
        out.write(item.header(7))
        out.seek(100 + item.length - len(item.trailer(7)))
        out.write(item.trailer(7))
    stored = torch_zip.locate(SourceFile(path), 100, item.length)
    assert stored.offset == item.payload_offset
    assert (stored.shape, stored.crc32) == ((5 << 30,), 7)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/0").file_size == 5 << 30


def test_a_flipped_bit_is_found(tmp_path):
    file, at, length = save(tmp_path, torch.arange(300_000))
    stored = torch_zip.locate(file, at, length)
    with open(file.path, "r+b") as out:
        out.seek(stored.offset + 2_000_001)
        out.write(b"\x55")
    with pytest.raises(CorruptCheckpoint, match=r"the tensor \(bytes .*\) has checksum "):
        file.pread(stored.record_nbytes, stored.record_offset)
    with pytest.raises(CorruptCheckpoint) as caught:
        torch_zip.verify_crc(SourceFile(file.path), at, length)
    assert f"{file.path}: item at byte 777: record 'data/0' has checksum " in str(caught.value)
    assert "its bytes changed after they were written" in str(caught.value)


def tensor(**lies):
    return hostile.archive(hostile.tensor_pickle(**lies))


def flags(data, bit):
    """``data`` with a flag set in the last directory entry."""
    raw = bytearray(data)
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 8 : at + 10] = struct.pack("<H", bit)
    return bytes(raw)


TWICE = (("data/0", bytes(24)), ("data.pkl", hostile.call("os", "system")))
HOSTILE = {
    "evil pickle": (
        *(hostile.archive(hostile.call("os", "system")), UnsafeCheckpoint),
        "item at byte 777: data.pkl: names os.system, which no checkpoint of this kind needs",
    ),
    "two data.pkl": (
        *(hostile.archive(hostile.tensor_pickle(), TWICE), UnsafeCheckpoint),
        "item at byte 777: two records are named 'data.pkl'",
    ),
    "overlap": (
        hostile.overlapping_archive(),
        UnsafeCheckpoint,
        "record 'data/1' overlaps another",
    ),
    "deflated": (
        hostile.archive(hostile.tensor_pickle(), compression=zipfile.ZIP_DEFLATED),
        UnsafeCheckpoint,
        "record 'data.pkl' is compressed or encrypted, which torch.save never does",
    ),
    "encrypted": (flags(tensor(), 1), UnsafeCheckpoint, "is compressed or encrypted"),
    "big endian": (
        *(hostile.archive(hostile.tensor_pickle(), byteorder=b"big"), UnsupportedError),
        "item at byte 777: written on a big-endian machine",
    ),
    "no data": (
        *(hostile.archive(hostile.tensor_pickle(), ()), CorruptCheckpoint),
        "item at byte 777: record 'data/0' is missing",
    ),
    "no tensor": (torch_items.object_item([1]), CorruptCheckpoint, "data.pkl: holds no tensor"),
    "short record": (
        *(tensor(count=7), CorruptCheckpoint),
        "record 'data/0' has 24 bytes, but data.pkl says 28",
    ),
    "shape too large": (
        *(tensor(shape=(3, 3)), CorruptCheckpoint),
        "which needs more than the 24 bytes of its storage",
    ),
    "offset too large": (tensor(offset=1), CorruptCheckpoint, "storage offset 1, which needs more"),
    "negative offset": (tensor(offset=-1), CorruptCheckpoint, "at storage offset -1"),
    "stride 0": (
        *(tensor(count=1, shape=(10**6, 10**6), strides=(0, 0)), UnsafeCheckpoint),
        "a tensor of shape (1000000, 1000000) with strides (0, 0), whose elements overlap",
    ),
    "negative stride": (tensor(strides=(3, -1)), UnsafeCheckpoint, "whose elements overlap"),
    "overlapping strides": (tensor(strides=(1, 1)), UnsafeCheckpoint, "whose elements overlap"),
    "elements": (
        *(tensor(shape=(1 << 25, 1 << 25)), UnsafeCheckpoint),
        "a tensor of 1,125,899,906,842,624 elements",
    ),
    "negative shape": (tensor(shape=(-2, -3)), CorruptCheckpoint, "a tensor of shape (-2, -3)"),
    "axes": (tensor(strides=(1,)), CorruptCheckpoint, "a tensor with 2 axes and 1 strides"),
    "many axes": (tensor(shape=(1,) * 65), CorruptCheckpoint, "at most 64 ints"),
    "boolean shape": (
        tensor(shape=(True, 3)),
        CorruptCheckpoint,
        "shape is not a tuple of at most",
    ),
    "complex": (
        *(tensor(storage="ComplexFloatStorage"), UnsupportedError),
        "a storage of type torch.ComplexFloatStorage, which cannot be converted",
    ),
    "no archive": (b"x" * 500, CorruptCheckpoint, "no zip directory at its end"),
    "tiny": (b"PK", CorruptCheckpoint, "2 bytes are no torch.save archive"),
}


@pytest.mark.parametrize(("data", "error", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile(data, error, words, tmp_path):
    with pytest.raises(NemoconvError) as caught:
        torch_zip.locate(*put(tmp_path, data))
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/__0_0.distcp: item at byte 777: ")
    assert "\n" not in str(caught.value)


def test_outside_the_file(tmp_path):
    file, at, length = put(tmp_path, tensor())
    with pytest.raises(CorruptCheckpoint, match=r"ends at byte .* the copy looks cut short"):
        torch_zip.locate(file, at, length + 7)


def test_bombs_in_objects():
    for data, words in (
        (hostile.list_bomb(), "common.pt: describes more than 10,000,000 values"),
        (hostile.nested_lists(1000), "common.pt: values nested more than 200 deep"),
    ):
        with pytest.raises(UnsafeCheckpoint, match=words):
            torch_common.read_object(hostile.archive(data), where="common.pt")


@settings(max_examples=300, deadline=1000)
@given(kind=st.sampled_from(["torch", "ours"]), number=st.integers(0, 2**32))
def test_damage_gives_a_clean_error(kind, number, tmp_path_factory):
    if kind == "torch":
        out = io.BytesIO()
        torch.save(torch.arange(40), out)
        raw = bytearray(out.getvalue())
    else:
        raw = bytearray(emit(BY_NAME["int64"], (40,)))
    seed = random.Random(number)
    # pickle and directory are small parts of the file: hit those more often
    for _ in range(seed.randint(1, 4)):
        at = seed.choice([seed.randrange(300), len(raw) - 1 - seed.randrange(700)])
        raw[at] = seed.choice([0, 255, seed.randrange(256), raw[at] ^ 1 << seed.randrange(8)])
    file, at, length = put(tmp_path_factory.getbasetemp(), bytes(raw))
    try:
        stored = torch_zip.locate(file, at, length)
        torch_zip.verify_crc(file, at, length)
    except NemoconvError as error:
        message = str(error)
    else:
        message = ""
        read_back(file, stored)
    assert "\n" not in message
    file.close()
