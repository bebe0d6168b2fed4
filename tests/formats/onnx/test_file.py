"""ONNX files: graph and weights come apart to the byte, and every lie about external data is refused."""

from __future__ import annotations

import os
import struct

import ml_dtypes
import numpy
import pytest

from nemoconv.errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedError,
    UnsupportedFormat,
    UsageError,
)
from nemoconv.formats.onnx import wire as onnx_wire
from nemoconv.formats.onnx.file import read_onnx
from nemoconv.formats.onnx.types import TYPES
from nemoconv.stores.files import SourceDir, SourceFile

onnx = pytest.importorskip("onnx")
helper, T = onnx.helper, onnx.TensorProto

AWKWARD = numpy.array([0x7FC01234, 0x80000000, 1, 0x7F800000, 0xFF800001, 0x007FFFFF], numpy.uint32)


def tensor(name="w", kind=T.FLOAT, dims=(2, 3), raw=None):
    t = T(name=name, data_type=kind, dims=dims)
    if raw is not None:
        t.raw_data = raw
    return t


def external(name="w", kind=T.FLOAT, dims=(2, 3), **entries):
    t = T(name=name, data_type=kind, dims=dims, data_location=T.EXTERNAL)
    for key, value in entries.items():
        entry = t.external_data.add()
        entry.key, entry.value = key, str(value)
    return t


def model(*initializers, nodes=(), **extra):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", T.INT64, ["batch", 3])],
        [helper.make_tensor_value_info("y", T.FLOAT, None)],
        list(initializers),
    )
    return helper.make_model(
        graph, producer_name="tests", opset_imports=[helper.make_opsetid("", 23)], **extra
    )


def save(folder, message, name="model.onnx"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(message if isinstance(message, bytes) else message.SerializeToString())
    return read_onnx(SourceDir(folder), name, name.rpartition("/")[0])


def refused(folder, message, kind, code):
    with pytest.raises(NemoconvError) as caught:
        save(folder, message)
    assert type(caught.value) is kind, caught.value
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return caught.value.message.replace(str(folder), "MODEL")


def held(found, name):
    entry = found.initializers[name]
    return entry.file.pread(entry.nbytes, entry.offset)


# --- where the elements lie ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 6, 1000, 600_000])
def test_raw_data_is_a_place_in_the_file(tmp_path, size):
    data = numpy.random.default_rng(0).bytes(4 * size)
    found = save(tmp_path, model(tensor("a", dims=(size,), raw=data), tensor("b", dims=(1,), raw=b"abcd")))
    assert held(found, "a") == data
    assert held(found, "b") == b"abcd"
    assert found.initializers["a"].file.path.endswith("model.onnx")
    assert not found.initializers["a"].external


def test_weights_are_not_parsed(tmp_path):
    """What is left for the parser does not grow with the weights."""
    message = model(tensor(dims=(1 << 20,), raw=bytes(4 << 20)))
    (tmp_path / "model.onnx").write_bytes(message.SerializeToString())
    split = onnx_wire.split(SourceFile(tmp_path / "model.onnx"))
    assert len(split.message) < 500
    assert [payload and payload[0] for payload in split.payloads] == ["raw_data"]


def test_nothing_but_payloads_is_taken_out(tmp_path):
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor("c", raw=bytes(24)))]
    message = model(tensor("a", raw=bytes(range(24))), tensor("b", raw=b"x" * 24), nodes=nodes)
    helper.set_model_props(message, {"key": "value"})
    (tmp_path / "model.onnx").write_bytes(message.SerializeToString())
    parsed = onnx.ModelProto.FromString(onnx_wire.split(SourceFile(tmp_path / "model.onnx")).message)
    for initializer in message.graph.initializer:
        initializer.ClearField("raw_data")
    assert parsed == message


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (T.FLOAT, "float32"), (T.DOUBLE, "float64"), (T.FLOAT16, "float16"), (T.BFLOAT16, "bfloat16"),
        (T.INT8, "int8"), (T.UINT8, "uint8"), (T.INT16, "int16"), (T.UINT16, "uint16"), (T.INT32, "int32"),
        (T.INT64, "int64"), (T.UINT32, "uint32"), (T.UINT64, "uint64"), (T.BOOL, "bool"),
        (T.FLOAT8E4M3FN, "float8_e4m3fn"), (T.FLOAT8E5M2, "float8_e5m2"),
    ],
)  # fmt: skip
def test_typed_fields(tmp_path, kind, dtype):
    """Elements in float_data, int32_data and so on are the bytes that the onnx library makes of them."""
    wanted = numpy.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    values = numpy.array([0, 1, 0, 1, 1, 1] if dtype == "bool" else [-2, 0, 1, 5, 7, 100]).astype(wanted)
    message = helper.make_tensor(
        "w", kind, (2, 3), values.tolist() if wanted.kind != "V" else values, raw=False
    )
    assert not message.raw_data
    found = save(tmp_path, model(message))
    assert held(found, "w") == onnx.numpy_helper.to_array(message).tobytes()
    assert found.initializers["w"].stored().dtype.name == dtype


@pytest.mark.parametrize(
    ("kind", "name"), [(T.INT4, "INT4"), (T.UINT4, "UINT4"), (T.FLOAT4E2M1, "FLOAT4E2M1")]
)
def test_packed_types_are_named_and_kept_packed(tmp_path, kind, name):
    found = save(tmp_path, model(tensor(kind=kind, dims=(3, 3), raw=b"\x21\x43\x65\x87\x09")))
    assert held(found, "w") == b"\x21\x43\x65\x87\x09"
    with pytest.raises(UnsupportedError, match=name):
        found.initializers["w"].stored()


def test_every_type_of_onnx_is_known():
    numbers = {number for name, number in T.DataType.items() if name != "UNDEFINED"}
    assert numbers == set(TYPES)
    for name, number in T.DataType.items():
        if name != "UNDEFINED":
            assert TYPES[number].name == name


def test_what_a_graph_says(tmp_path):
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="look", axis=0)
    function = helper.make_function("local", "f", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [])
    message = model(tensor(raw=bytes(24)), nodes=[node], functions=[function])
    body = helper.make_graph([], "body", [], [])
    message.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
    sparse = message.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor("s", dims=(1,), raw=bytes(4)))
    found = save(tmp_path, message)
    assert found.opsets == {"ai.onnx": 23}
    assert (found.inputs[0].shape, found.outputs[0].shape) == (("batch", 3), None)
    assert str(found.inputs[0]) == "INT64 ['batch', 3]"
    assert (found.nodes[0].op, found.nodes[0].attributes) == ("Gather", {"axis": 0})
    assert sorted(found.parts.pop("sub-graphs")) == ["If else_branch", "If then_branch"]
    assert found.parts == {"functions": ("f",),
                           "sparse initializers": ("s",)}  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"sparse initializers \(s\)"):
        found.require_plain(("sparse initializers",))


# --- external data ---------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """64 bytes beside a model that may use them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "data.bin").write_bytes(bytes(range(64)))
    (tmp_path / "secret.bin").write_bytes(b"s" * 64)
    return folder


@pytest.mark.parametrize(
    "entries", [{"offset": 8, "length": 24}, {"offset": 8}, {"offset": "40", "checksum": "x"}]
)
def test_external_data(weights, entries):
    found = save(weights, model(external(location="data.bin", **entries)))
    offset = int(entries["offset"])
    assert held(found, "w") == bytes(range(64))[offset : offset + 24]
    assert found.initializers["w"].external


def test_external_data_in_folders_and_hub_caches(tmp_path):
    """A snapshot's files are links to blobs; a model in onnx/ finds its data there too."""
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "1").write_bytes(bytes(range(64)))
    snapshot = repo / "snapshots" / "abc"
    (snapshot / "onnx" / "deep").mkdir(parents=True)
    (snapshot / "onnx" / "deep" / "data.bin").symlink_to("../../../../blobs/1")
    message = model(external(location="deep/data.bin", offset=1))
    (snapshot / "onnx" / "model.onnx").write_bytes(message.SerializeToString())
    found = read_onnx(SourceDir(snapshot), "onnx/model.onnx", "onnx")
    assert held(found, "w") == bytes(range(1, 25))


def test_external_data_through_hard_links_and_inner_links(weights):
    os.link(weights / "data.bin", weights / "hard.bin")
    (weights / "soft.bin").symlink_to("data.bin")
    for name in ("hard.bin", "soft.bin"):
        assert held(save(weights, model(external(location=name))), "w") == bytes(range(24))


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "..\\secret.bin", "C:\\x", "a\0b", "//x"],
)
def test_locations_that_lead_elsewhere(weights, location):
    message = refused(weights, model(external(location=location)), UnsafeCheckpoint, 4)
    assert "which is not a plain relative name" in message


def test_links_that_lead_elsewhere(weights):
    (weights / "data.bin").unlink()
    (weights / "data.bin").symlink_to("../secret.bin")
    message = refused(weights, model(external(location="data.bin")), UnsafeCheckpoint, 4)
    assert "leads outside the checkpoint" in message
    (weights / "data.bin").unlink()
    (weights / "folder").symlink_to("..")
    message = refused(weights, model(external(location="folder/secret.bin")), UnsafeCheckpoint, 4)
    assert "leads outside the checkpoint" in message


def test_what_is_no_regular_file(weights):
    os.mkfifo(weights / "pipe")
    assert "not a regular file" in refused(weights, model(external(location="pipe")), UnsafeCheckpoint, 4)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 41, "length": 24}, "lies at bytes 41..65 of 'data.bin', which ends at 64"),
        ({"offset": 10**17, "length": 24}, "which ends at 64"),
        ({"offset": -1, "length": 24}, "external data with offset '-1'"),
        ({"offset": "0x8"}, "external data with offset '0x8'"),
        ({"offset": "1_0"}, "external data with offset '1_0'"),
        ({"offset": "٣"}, "external data with offset"),
        ({"offset": "9" * 30}, "external data with offset"),
        ({"offset": 0, "length": 23}, "needs 24 bytes, and has 23"),
        ({"offset": 0, "length": 64}, "needs 24 bytes, and has 64"),
        ({"offset": 0, "length": ""}, "external data with length ''"),
        ({"basepath": "/etc"}, "with a base path"),
        ({"other": 1}, "second or unknown key 'other'"),
    ],
)
def test_external_data_that_lies(weights, entries, words):
    message = refused(weights, model(external(location="data.bin", **entries)), CorruptCheckpoint, 3)
    assert words in message
    assert "initializer 'w'" in message


def test_external_data_that_is_missing(weights):
    message = refused(weights, model(external(location="no.bin")), CorruptCheckpoint, 3)
    assert message == "MODEL/no.bin: missing"
    assert "without a location" in refused(weights, model(external(offset=0)), CorruptCheckpoint, 3)


def test_a_key_that_comes_twice(weights):
    message = external(location="data.bin")
    entry = message.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    assert "second or unknown key 'location'" in refused(weights, model(message), CorruptCheckpoint, 3)


def test_data_inside_and_outside(weights):
    message = external(location="data.bin")
    message.raw_data = bytes(24)
    assert "both inside and outside" in refused(weights, model(message), CorruptCheckpoint, 3)
    message = external(location="data.bin")
    message.data_location = T.DEFAULT
    assert "names external data and says" in refused(weights, model(message), CorruptCheckpoint, 3)


def test_overlaps(weights):
    """Sharing all bytes is how tied weights are stored; sharing some is a mistake or a trick."""
    shared = [external(name, location="data.bin", offset=8) for name in "ab"]
    beside = external("c", location="data.bin", offset=32)
    assert len(save(weights, model(*shared, beside)).initializers) == 3
    message = refused(
        weights, model(*shared, external("c", location="data.bin", offset=28)), CorruptCheckpoint, 3
    )
    assert "'c' at byte 28 of MODEL/data.bin overlaps 'b'" in message


# --- other lies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "kind", "code", "words"),
    [
        ((1 << 40, 1 << 40), UnsafeCheckpoint, 4, "claims more than"),
        ((1 << 62, 1 << 62, 0), UnsafeCheckpoint, 4, "claims more than"),
        ((-2, -3), CorruptCheckpoint, 3, "has an axis of length -2"),
        ((2, 4), CorruptCheckpoint, 3, "needs 32 bytes, and has 24"),
        ((1,) * 100, UnsafeCheckpoint, 4, "has 100 axes"),
    ],
)
def test_shapes_that_lie(tmp_path, dims, kind, code, words):
    assert words in refused(tmp_path, model(tensor(dims=dims, raw=bytes(24))), kind, code)


def test_two_of_a_name(tmp_path):
    twice = [tensor("w", raw=bytes(24)), tensor("w", raw=bytes(24))]
    assert "two initializers are called 'w'" in refused(tmp_path, model(*twice), CorruptCheckpoint, 3)


def test_data_twice(tmp_path):
    message = tensor(raw=bytes(24))
    message.float_data.extend([1.0] * 6)
    assert "has float_data and then raw_data" in refused(tmp_path, model(message), CorruptCheckpoint, 3)
    message = tensor(kind=T.INT64, dims=(1,), raw=bytes(8))
    message.int64_data.append(1)
    assert "has data twice: raw_data, int64_data" in refused(tmp_path, model(message), CorruptCheckpoint, 3)


def test_data_in_the_field_of_another_type(tmp_path):
    message = tensor(kind=T.FLOAT16, dims=(1,))
    message.float_data.append(1.0)
    assert "is FLOAT16, but lies in float_data" in refused(tmp_path, model(message), CorruptCheckpoint, 3)
    message = tensor(kind=T.INT8, dims=(1,))
    message.int32_data.append(300)
    assert "int32_data holds larger numbers" in refused(tmp_path, model(message), CorruptCheckpoint, 3)


def test_unknown_types_and_segments(tmp_path):
    assert "unknown element type 99" in refused(
        tmp_path, model(tensor(kind=99, dims=(0,))), UnsupportedError, 5
    )
    message = tensor(raw=bytes(24))
    message.segment.begin = 1
    assert "stored in segments" in refused(tmp_path, model(message), UnsupportedError, 5)


def test_every_prefix_is_refused(tmp_path):
    """A download cut short: never a traceback, never a smaller model."""
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="look")
    data = model(tensor(raw=AWKWARD.tobytes()), nodes=[node]).SerializeToString()
    save(tmp_path, data)
    for length in range(len(data)):
        with pytest.raises(NemoconvError):
            save(tmp_path, data[:length])


def test_random_damage_never_escapes(tmp_path):
    """Whatever a byte is changed to, the answer is a graph or one of our errors."""
    data = model(tensor(raw=AWKWARD.tobytes()), external("e", location="d", length=24)).SerializeToString()
    (tmp_path / "d").write_bytes(bytes(24))
    random = numpy.random.default_rng(1)
    for _ in range(1500):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 2):
            changed[place] = random.integers(0, 256)
        try:
            save(tmp_path, bytes(changed))
        except NemoconvError as error:
            assert error.exit_code in (3, 4, 5)


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00", b"version https://git-lfs.github.com/spec/v1\n", b"\x3a" + b"\xff" * 10, b"\x3b\x3c",
        b"\x3a" + varint(1 << 62) + b"x", b"\xff" * 100, b"\x3a\x02\x2a\x7f", b"PK\x03\x04" + bytes(100),
    ],
)  # fmt: skip
def test_what_is_no_onnx(tmp_path, data):
    assert refused(tmp_path, data, CorruptCheckpoint, 3).startswith("MODEL/model.onnx: is ")


def test_deep_nesting(tmp_path):
    """Sub-graphs in sub-graphs: parsers that recurse without a limit crash."""
    graph = b""
    for _ in range(20_000):
        attribute = b"\x32" + varint(len(graph)) + graph
        node = b"\x2a" + varint(len(attribute)) + attribute
        graph = b"\x0a" + varint(len(node)) + node
    data = b"\x3a" + varint(len(graph)) + graph + b"\x42\x02\x10\x17"
    assert "is not ONNX, or damaged" in refused(tmp_path, data, CorruptCheckpoint, 3)


def test_a_graph_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_wire, "MAX_GRAPH", 10_000)
    nodes = [helper.make_node("Neg", ["x"], [f"y{n}"], name="n" * 100) for n in range(200)]
    assert "a graph of more than 10,000 bytes" in refused(tmp_path, model(nodes=nodes), UnsafeCheckpoint, 4)


def test_a_file_that_protobuf_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_wire, "MAX_FILE", 100)
    message = refused(tmp_path, model(tensor(raw=bytes(100))), UnsupportedFormat, 5)
    assert message.endswith("and protobuf ends at 100")


def test_a_graph_in_two_pieces(tmp_path):
    """protobuf merges them, and so does the walk."""
    a, b = model(tensor("a", raw=b"a" * 24)), onnx.ModelProto()
    b.graph.initializer.append(tensor("b", raw=b"b" * 24))
    found = save(tmp_path, a.SerializeToString() + b.SerializeToString())
    assert (held(found, "a"), held(found, "b")) == (b"a" * 24, b"b" * 24)


def test_struct_is_little_endian(tmp_path):
    message = tensor(dims=(1,))
    message.float_data.append(1.5)
    assert held(save(tmp_path, model(message)), "w") == struct.pack("<f", 1.5)


def test_onnx_is_not_installed(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError) as caught:
        save(tmp_path, model())
    assert caught.value.hint == "pip install 'nemoconv[onnx]'"


def test_names_that_are_not_text(tmp_path):
    data = model(tensor("wwww", raw=bytes(24))).SerializeToString()
    message = refused(tmp_path, data.replace(b"wwww", b"w\xff\xfew"), CorruptCheckpoint, 3)
    assert message == "MODEL/model.onnx: the name b'w\\xff\\xfew' is not UTF-8"


def test_metadata_of_two_minds(tmp_path):
    message = model()
    for value in "ab":
        entry = message.metadata_props.add()
        entry.key, entry.value = "nemoconv.config", value
    assert "has the key 'nemoconv.config' twice" in refused(tmp_path, message, CorruptCheckpoint, 3)


def test_too_many_small_things(tmp_path, monkeypatch):
    """Millions of empty nodes are a small file and a large heap."""
    monkeypatch.setattr(onnx_wire, "MAX_FIELDS", 100)
    save(tmp_path, model(nodes=[helper.make_node("Neg", ["x"], [f"y{n}"]) for n in range(40)]))
    nodes = [helper.make_node("Neg", ["x"], [f"y{n}"]) for n in range(200)]
    assert "a graph of more than 100 parts" in refused(tmp_path, model(nodes=nodes), UnsafeCheckpoint, 4)
