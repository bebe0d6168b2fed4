"""Whole torch.save files: torch writes and we read, we write and torch reads, lies are refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from math import prod

import hostile
import numpy
import pytest

from nemoconv.errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedError,
    UnsupportedFormat,
)
from nemoconv.formats.torch import zip as torch_zip
from nemoconv.formats.torch.checkpoint import StateDictItem, TorchFile, read_state_dict
from nemoconv.formats.torch.legacy import MAGIC
from nemoconv.stores.files import FilePart, SourceFile
from nemoconv.tensors.checksum import crc32
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box

torch = pytest.importorskip("torch")


#: float32 and bfloat16 patterns that arithmetic would change: NaN with payload, -0.0, subnormals
SPECIAL = bytes.fromhex("0100c07f0000008001000000010080ffffff7f000080c17f")
LAYOUTS = pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])


def bits(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def read_bits(tensor):
    return read_box(tensor, (0,) * len(tensor.shape), tensor.shape).tobytes()


def save(path, value, new=True):
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return SourceFile(path)


def special(shape, dtype):
    size = prod(shape) * torch.empty((), dtype=dtype).element_size()
    raw = (SPECIAL + bytes(range(256)) * (size // 256 + 1))[:size]
    return torch.frombuffer(bytearray(raw or b"0"), dtype=torch.uint8)[:size].view(dtype).reshape(shape)


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "uint8", "bool"])
def test_reads_what_torch_wrote_bit_for_bit(tmp_path, new, dtype):
    kind = getattr(torch, dtype)
    if kind is torch.bool:
        tensors = {"a.weight": torch.tensor([[True, False, True]])}
    else:
        tensors = {"a.weight": special((3, 5), kind), "a.bias": special((7,), kind), "s": special((), kind)}
    state = read_state_dict(save(tmp_path / "x.ckpt", OrderedDict(tensors), new))
    assert list(state.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert state.tensors[name].shape == tuple(tensor.shape)
        assert state.tensors[name].dtype.name == dtype
        assert read_bits(state.tensors[name]) == bits(tensor)


@LAYOUTS
def test_views_of_one_storage_and_strides(tmp_path, new):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"whole": whole, "turned": whole.t(), "part": whole[1:3, 2:5], "again": whole}
    state = read_state_dict(save(tmp_path / "x", tensors, new))
    for name, tensor in tensors.items():
        assert read_bits(state.tensors[name]) == bits(tensor)
    assert state.tensors["again"].extents == state.tensors["whole"].extents


@LAYOUTS
def test_an_empty_tensor(tmp_path, new):
    state = read_state_dict(save(tmp_path / "x", {"a": torch.empty(3, 0), "b": torch.ones(2)}, new))
    assert state.tensors["a"].shape == (3, 0)
    assert state.tensors["a"].extents == ()


@LAYOUTS
def test_a_checkpoint_of_lightning(tmp_path, new):
    value = {
        "epoch": 3,
        "state_dict": {
            "m": {"weight": torch.ones(2), "_extra_state": None},
            "x._extra_state": io.BytesIO(b"te"),
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "hyper_parameters": {"cfg": {"a": 1}},
    }
    state = read_state_dict(save(tmp_path / "x", value, new))
    assert list(state.tensors) == ["m.weight"]
    assert set(state.others) == {"m._extra_state", "x._extra_state"}
    assert set(state.around) == {"epoch", "optimizer_states", "hyper_parameters"}


def test_extra_state_tensors_are_no_weights(tmp_path):
    state = read_state_dict(save(tmp_path / "x", {"a._extra_state": torch.zeros(4, dtype=torch.uint8)}))
    assert state.tensors == {}
    assert list(state.others) == ["a._extra_state"]


def test_parameters_and_modules_metadata(tmp_path):
    module = torch.nn.Linear(3, 2)
    state = read_state_dict(save(tmp_path / "x", module.state_dict()))
    assert read_bits(state.tensors["weight"]) == bits(module.weight.detach())


@LAYOUTS
def test_in_the_middle_of_a_file(tmp_path, new):
    tensors = {"a": special((5, 3), torch.float32)}
    save(tmp_path / "x", tensors, new)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "y").write_bytes(b"before" + data + b"after")
    whole = SourceFile(tmp_path / "y")
    for state in (
        read_state_dict(whole, 6, len(data)),
        read_state_dict(FilePart(whole, "member", 6, len(data))),
    ):
        assert read_bits(state.tensors["a"]) == bits(tensors["a"])


# writing


def entries():
    return {
        "embedding.weight": (BY_NAME["bfloat16"], (7, 5)),
        "norm": (BY_NAME["float32"], (3,)),
        "linear._extra_state": None,
        "eight": (BY_NAME["float8_e4m3fn"], (9,)),
        "scalar": (BY_NAME["int64"], ()),
        "empty": (BY_NAME["float16"], (0, 4)),
    }


def write(path, item, before=b""):
    """A file with the item behind ``before``; returns the tensors' bytes."""
    parts = [(SPECIAL * (size // len(SPECIAL) + 1))[:size] for size in item.nbytes]
    whole = bytearray(item.offset + item.length)
    whole[: len(before)] = before
    for data, offset in zip(parts, item.payload_offsets, strict=True):
        whole[offset : offset + len(data)] = data
    for offset, data in item.frames([crc32(data) for data in parts]):
        whole[offset : offset + len(data)] = data
    assert len(whole) == item.offset + item.length
    path.write_bytes(whole)
    return parts


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_wrote(tmp_path, mmap):
    item = StateDictItem(entries())
    parts = write(tmp_path / "x.ckpt", item)
    assert all(offset % 64 == 0 for offset in item.payload_offsets)
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=True, mmap=mmap)
    assert type(loaded) is OrderedDict
    assert list(loaded) == list(entries())
    assert loaded["linear._extra_state"] is None
    tensors = [tensor for tensor in loaded.values() if tensor is not None]
    for tensor, data in zip(tensors, parts, strict=True):
        assert bits(tensor) == data
    assert torch_zip.verify_crc(SourceFile(tmp_path / "x.ckpt"), 0, item.length) > sum(item.nbytes)


def test_we_read_what_we_wrote_behind_other_bytes(tmp_path):
    item = StateDictItem(entries(), offset=1536)
    parts = write(tmp_path / "x", item, bytes(1536))
    state = read_state_dict(SourceFile(tmp_path / "x"), 1536, item.length)
    for tensor, data in zip(state.tensors.values(), parts, strict=True):
        assert read_bits(tensor) == data
    assert state.others == {"linear._extra_state": None}


def test_beyond_4_gib_and_65535_records(tmp_path):
    """Offsets, sizes and counts that only zip64 can say. The file is sparse: nothing but frames is written."""
    big = 5 << 30
    kinds = {"a": (BY_NAME["uint8"], (big,)), "b": (BY_NAME["uint8"], (16,)), "c": (BY_NAME["uint8"], (big,))}
    item = StateDictItem(kinds)
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        for offset, data in item.frames([1, 2, 3]):
            file.seek(offset)
            file.write(data)
    state = read_state_dict(SourceFile(path))
    assert [t.extents[0].offset for t in state.tensors.values()] == list(item.payload_offsets)
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["c"].shape == (big,)
    many = StateDictItem({f"t{i}": (BY_NAME["uint8"], (1,)) for i in range(66_000)})
    path = tmp_path / "many"
    write(path, many)
    assert len(torch_zip.Archive(SourceFile(path), 0, many.length, "many").records) == 66_003
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 66_003


# what must fail


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", CorruptCheckpoint),
        (b"PK\x03\x04" + bytes(60), CorruptCheckpoint),
        (pickle.dumps({"a": 1}), UnsupportedFormat),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), UnsupportedFormat),
        (MAGIC, CorruptCheckpoint),
        (MAGIC + b"\x80\x02M\xe9\x03.", CorruptCheckpoint),
        (MAGIC + b"\x80\x02K\x01.", CorruptCheckpoint),
    ],
)
def test_what_is_no_torch_file(tmp_path, data, error):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(error) as caught:
        TorchFile(SourceFile(tmp_path / "x"))
    assert str(tmp_path / "x") in str(caught.value)


STORAGE = struct.pack("<q", 6) + bytes(24)


def older(body, keys=b"\x80\x02]X\x01\x00\x00\x000a.", storage=STORAGE):
    """A file of the older layout around the pickle ``body``."""
    machine = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    return MAGIC + pickle.dumps(1001, 2) + machine + body + keys + storage


def tensor_of_old():
    return hostile.tensor_pickle()


def test_the_older_layout_by_hand(tmp_path):
    (tmp_path / "x").write_bytes(older(b"\x80\x02}X\x01\x00\x00\x00a" + tensor_of_old()[2:-1] + b"s."))
    state = read_state_dict(SourceFile(tmp_path / "x"))
    assert read_bits(state.tensors["a"]) == bytes(24)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda: older(hostile.call("os", "system")), UnsafeCheckpoint, "os.system"),
        (lambda: older(hostile.call("builtins", "eval")), UnsafeCheckpoint, "builtins.eval"),
        (lambda: older(hostile.popped_call()), UnsafeCheckpoint, "os.system"),
        (lambda: older(hostile.inst()), UnsafeCheckpoint, "os.system"),
        (lambda: older(hostile.stack_global("os", "system")), UnsafeCheckpoint, "os.system"),
        (lambda: older(hostile.list_bomb(), b"\x80\x02].", b""), UnsafeCheckpoint, "more than"),
        (lambda: older(hostile.huge_string()), CorruptCheckpoint, "no whole pickle"),
        (
            lambda: older(tensor_of_old(), storage=struct.pack("<q", 7) + bytes(28)),
            CorruptCheckpoint,
            "7 elements",
        ),
        (
            lambda: older(tensor_of_old(), storage=struct.pack("<q", -6) + bytes(24)),
            CorruptCheckpoint,
            "-6 elements",
        ),
        (
            lambda: older(tensor_of_old(), storage=struct.pack("<q", 6) + bytes(20)),
            CorruptCheckpoint,
            "end at byte",
        ),
        (lambda: older(tensor_of_old()) + b"!", CorruptCheckpoint, "end at byte"),
        (lambda: older(tensor_of_old(), keys=b"\x80\x02]."), CorruptCheckpoint, "end at byte"),
        (
            lambda: older(tensor_of_old(), keys=b"\x80\x02]X\x01\x00\x00\x001a."),
            CorruptCheckpoint,
            "once each",
        ),
        (lambda: older(tensor_of_old(), keys=b"\x80\x02}."), CorruptCheckpoint, "no list"),
        (lambda: older(tensor_of_old())[:-30], CorruptCheckpoint, ""),
    ],
)
def test_hostile_files_of_the_older_layout(tmp_path, change, error, says):
    (tmp_path / "x").write_bytes(change())
    with pytest.raises(error) as caught:
        read_state_dict(SourceFile(tmp_path / "x"))
    assert says in str(caught.value)


@LAYOUTS
def test_an_object_that_torch_would_run(tmp_path, new):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    for value in ({"a": Evil()}, {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": Evil()}):
        file = save(tmp_path / "x", value, new)
        with pytest.raises(UnsafeCheckpoint, match="exec"):
            read_state_dict(file)
        assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "x", weights_only=False)  # the control: it would have
    assert (tmp_path / "ran").exists()


@LAYOUTS
def test_every_cut_is_noticed(tmp_path, new):
    save(tmp_path / "x", {"a": special((4, 3), torch.float32), "b": torch.ones(5)}, new)
    data = (tmp_path / "x").read_bytes()
    for size in range(0, len(data), 13):
        (tmp_path / "y").write_bytes(data[:size])
        with pytest.raises(NemoconvError):
            read_state_dict(SourceFile(tmp_path / "y"))


@pytest.mark.parametrize("value", [[1], 5, {"a": torch.ones(1), 3: torch.ones(1)}, torch.ones(2)])
def test_what_is_no_state_dict(tmp_path, value):
    with pytest.raises(CorruptCheckpoint):
        read_state_dict(save(tmp_path / "x", value))


def test_one_name_nested_and_flat(tmp_path):
    value = {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}
    with pytest.raises(CorruptCheckpoint, match="there twice"):
        read_state_dict(save(tmp_path / "x", value))


def test_complex_numbers_are_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedError, match="Complex"):
        read_state_dict(save(tmp_path / "x", {"a": torch.ones(2, dtype=torch.complex64)}))


def test_numpy_values_beside_the_weights(tmp_path):
    value = {"state_dict": {"a": torch.ones(1)}, "rng": numpy.random.RandomState(0).get_state()}
    assert list(read_state_dict(save(tmp_path / "x", value)).tensors) == ["a"]
