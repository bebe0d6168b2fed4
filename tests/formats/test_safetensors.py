"""safetensors headers: the library's files are read, ours are read by the library, liars are refused."""

from __future__ import annotations

import json
import struct
from math import prod

import numpy
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint, UnsupportedError
from nemoconv.formats.safetensors import emit_header, read_header
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME

torch = pytest.importorskip("torch")
library = pytest.importorskip("safetensors.torch")

SHAPES = [(), (0,), (3,), (2, 0, 4), (2, 3), (1, 1, 5)]


def file_of(tmp_path, header, data=b"", *, length=None):
    """A file with this header (bytes, or what JSON makes of it) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def read(path):
    file = SourceFile(path)
    try:
        return read_header(file)
    finally:
        file.close()


def refused(path, kind=CorruptCheckpoint):
    with pytest.raises(NemoconvError) as caught:
        read(path)
    assert type(caught.value) is kind
    assert caught.value.message.startswith(str(path))
    assert "\n" not in str(caught.value)
    return caught.value.message.removeprefix(str(path))


def entry(first, last, shape=(2,), dtype="BF16"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


# --- against the library ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_librarys_files_are_read(tmp_path, name):
    dtype = BY_NAME[name]
    tensors = {}
    for number, shape in enumerate(SHAPES):
        raw = torch.randint(
            0, 2 if name == "bool" else 256, (prod(shape) * dtype.itemsize,), dtype=torch.uint8
        )
        tensors[f"t{number}"] = raw.view(getattr(torch, name)).reshape(shape)
    path = tmp_path / "x.safetensors"
    library.save_file(tensors, path, {"format": "pt", "other": "é\n"})
    found, metadata = read(path)
    assert metadata == {"format": "pt", "other": "é\n"}
    assert found.keys() == tensors.keys()
    data = path.read_bytes()
    for key, tensor in tensors.items():
        stored = found[key]
        assert stored.dtype == dtype
        assert stored.shape == tuple(tensor.shape)
        (extent,) = stored.extents
        held = data[extent.offset : extent.offset + stored.nbytes]
        expected = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
        assert held == bytes(expected.to(torch.uint8).tolist())


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_library_reads_ours(tmp_path, name):
    dtype = BY_NAME[name]
    wanted = [(f"t{number}", dtype, shape) for number, shape in enumerate(SHAPES)]
    header, places = emit_header(wanted)
    random = numpy.random.default_rng(0)
    path = tmp_path / "x.safetensors"
    parts = [
        random.integers(0, 2 if name == "bool" else 256, prod(shape) * dtype.itemsize, dtype=numpy.uint8)
        for _, _, shape in wanted
    ]
    path.write_bytes(header + b"".join(part.tobytes() for part in parts))
    found = library.load_file(path)
    for (key, _, shape), part in zip(wanted, parts, strict=True):
        assert found[key].dtype == getattr(torch, name)
        assert tuple(found[key].shape) == shape
        if part.size:
            assert found[key].reshape(-1).view(torch.uint8).tolist() == part.tolist()
    assert [extent.offset for t in read(path)[0].values() for extent in t.extents] == places
    assert len(header) % 64 == 0


def test_every_tensor_is_aligned_when_sizes_fall():
    header, places = emit_header(
        [("a", BY_NAME["float64"], (3,)), ("b", BY_NAME["bfloat16"], (3,)), ("c", BY_NAME["uint8"], (5,))]
    )
    base = len(header)
    assert places == [base, base + 24, base + 30]


def test_names_are_carried_as_they_are(tmp_path):
    """A name is not a path: the library accepts any text, and nothing here opens it."""
    names = ["../../../etc/passwd", "a\nb", "é", 'quote"', "\u202e"]
    header, _ = emit_header([(name, BY_NAME["uint8"], (1,)) for name in names])
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(len(names)))
    assert list(read(path)[0]) == names
    assert set(library.load_file(path)) == set(names)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "nbytes", "message"),
    [
        ({"a": entry(0, 4), "b": entry(6, 10)}, 10, ": tensor 'b' leaves a hole of 2 bytes before it"),
        ({"a": entry(2, 6)}, 6, ": tensor 'a' leaves a hole of 2 bytes before it"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, ": tensor 'b' overlaps the one before it"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, ": tensor 'b' overlaps the one before it"),
        ({"a": entry(0, 4)}, 5, "tensors end at byte"),
        ({}, 3, "tensors end at byte"),
        (
            {"a": entry(0, 5)},
            5,
            ": tensor 'a' of shape [2] and dtype bfloat16 does not fit bytes 0..5 of the data",
        ),
        (
            {"a": entry(0, 4)},
            3,
            ": tensor 'a' of shape [2] and dtype bfloat16 does not fit bytes 0..4 of the data",
        ),
        (
            {"a": entry(4, 0)},
            4,
            ": tensor 'a' of shape [2] and dtype bfloat16 does not fit bytes 4..0 of the data",
        ),
        ({"a": entry(-4, 0)}, 4, ": tensor 'a' has shape [2] and data_offsets [-4, 0]"),
        ({"a": entry(0, 4, (-2,))}, 4, ": tensor 'a' has shape [-2] and data_offsets [0, 4]"),
        ({"a": entry(0, 2, (True,))}, 2, ": tensor 'a' has shape [True] and data_offsets [0, 2]"),
        ({"a": entry(False, 4)}, 4, ": tensor 'a' has shape [2] and data_offsets [False, 4]"),
        ({"a": entry(0, 4, (2.0,))}, 4, ": tensor 'a' has shape [2.0] and data_offsets [0, 4]"),
        ({"a": entry(0, 4) | {"shape": 2}}, 4, ": tensor 'a' has shape 2 and data_offsets [0, 4]"),
        ({"a": entry(0, 4) | {"shape": None}}, 4, ": tensor 'a' has shape None and data_offsets [0, 4]"),
        (
            {"a": entry(0, 4) | {"data_offsets": [0, 2, 4]}},
            4,
            ": tensor 'a' has shape [2] and data_offsets [0, 2, 4]",
        ),
        (
            {"a": entry(0, 4) | {"more": 1}},
            4,
            ": tensor 'a' is not described by dtype, shape and data_offsets",
        ),
        ({"a": {"dtype": "BF16"}}, 4, ": tensor 'a' is not described by dtype, shape and data_offsets"),
        ({"a": [0, 4]}, 4, ": tensor 'a' is not described by dtype, shape and data_offsets"),
        ([], 0, ": the header is not a JSON object"),
        ({"__metadata__": {"format": 1}}, 0, ": __metadata__ is not a table of strings"),
        ({"__metadata__": "pt"}, 0, ": __metadata__ is not a table of strings"),
        ({"__metadata__": None}, 0, ": __metadata__ is not a table of strings"),
        (
            b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"a":{"dtype":"BF16","shape":[2],'
            b'"data_offsets":[0,4]}}',
            4,
            " (header): the key 'a' appears twice",
        ),
        (
            b'{"a":{"dtype":"BF16","dtype":"F16","shape":[2],"data_offsets":[0,4]}}',
            4,
            " (header): the key 'dtype' appears twice",
        ),
        (b"{", 0, " (header): not JSON: Expecting property name enclosed in double quotes"),
        (b"\xff\xff", 0, " (header): not UTF-8 text (byte 0)"),
        (b'{"a": NaN}', 0, " (header): holds NaN, which JSON does not have"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, nbytes, message):
    assert message in refused(file_of(tmp_path, header, bytes(nbytes)))


@pytest.mark.parametrize("dtype", ["F4", "bf16", "C64", ""])
def test_an_unknown_dtype_is_named(tmp_path, dtype):
    path = file_of(tmp_path, {"a": entry(0, 4, dtype=dtype)}, bytes(4))
    assert refused(path, UnsupportedError) == f": tensor 'a' has the unsupported dtype {dtype!r}"


@pytest.mark.parametrize("dtype", [5, None, ["BF16"], {"a": 1}])
def test_a_dtype_of_another_kind(tmp_path, dtype):
    path = file_of(tmp_path, {"a": entry(0, 4) | {"dtype": dtype}}, bytes(4))
    assert "unsupported dtype" in refused(path, UnsupportedError)


@pytest.mark.parametrize(
    "shape", [[1 << 49], [1 << 25, 1 << 25], [10**4000, 10**4000], [1 << 40, 1 << 40, 0], [7] * 300_000]
)
def test_a_bomb_is_refused_at_once(tmp_path, shape):
    path = file_of(tmp_path, {"a": entry(0, 4) | {"shape": shape}}, bytes(4))
    assert refused(path, UnsafeCheckpoint) == ": tensor 'a' claims more than 281,474,976,710,656 elements"


def test_huge_offsets(tmp_path):
    path = file_of(tmp_path, {"a": entry(10**4000, 10**4000 + 4)}, bytes(4))
    assert "does not fit bytes 10,000," in refused(path)


@pytest.mark.parametrize(("last", "hint"), [(4, "the copy looks cut short"), (2, "the header is broken")])
def test_data_that_do_not_fit_say_what_to_do(tmp_path, last, hint):
    path = file_of(tmp_path, {"a": entry(0, last)}, bytes(2))
    with pytest.raises(CorruptCheckpoint) as caught:
        read(path)
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1, 100_000_001])
def test_a_header_longer_than_the_file(tmp_path, length):
    path = file_of(tmp_path, b"{}", length=length)
    expected = f": claims a header of {length:,} bytes in a file of 10"
    assert refused(path) == expected


def test_a_header_over_the_limit_in_a_file_that_has_it(tmp_path):
    path = file_of(tmp_path, b"{}", length=100_000_001)
    with open(path, "r+b") as file:
        file.truncate(200_000_000)
    assert refused(path) == ": claims a header of 100,000,001 bytes in a file of 200,000,000"


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    assert refused(path) == ": 0 bytes are too few for a safetensors file"
    path.write_bytes(b"1234567")
    assert refused(path) == ": 7 bytes are too few for a safetensors file"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert refused(path) == ": is a Git LFS pointer, not the file itself"
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>" * 3)
    assert "claims a header of" in refused(path)


def test_deep_nesting(tmp_path):
    path = file_of(tmp_path, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert refused(path, UnsafeCheckpoint) == " (header): nested deeper than 64 levels"


def test_every_truncation_is_noticed(tmp_path):
    whole = file_of(tmp_path, {"a": entry(0, 4), "b": entry(4, 8)}, bytes(8)).read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole + b"\0")
    assert "tensors end at byte" in refused(path)
    path.write_bytes(whole)
    assert list(read(path)[0]) == ["a", "b"]


# --- mutations -------------------------------------------------------------------------------------

HEADER = (
    b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},'
    b'"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}  '
)
SEED = struct.pack("<Q", len(HEADER)) + HEADER + bytes(16)


def outcome(path, data):
    path.write_bytes(data)
    try:
        return read(path)[0]
    except NemoconvError as error:
        assert type(error) in (CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError)
        return None


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(max_size=3), st.integers(0, 3)), max_size=4)
)
@example([])
def test_mutated_files_are_read_or_refused(tmp_path, edits):
    data = SEED
    for at, new, removed in edits:
        data = data[:at] + new + data[at + removed :]
    found = outcome(tmp_path / "mutated", data)
    if data == SEED:
        assert list(found) == ["a", "b"]
    if found is not None:  # then the library agrees on what there is
        try:
            theirs = library.load(data)
        except Exception:
            return
        assert {name: tuple(t.shape) for name, t in theirs.items()} == {n: t.shape for n, t in found.items()}


def test_whatever_the_library_refuses_in_one_flipped_byte_we_refuse(tmp_path):
    for at in range(len(SEED)):
        for bit in (0, 1, 5):
            data = bytearray(SEED)
            data[at] ^= 1 << bit
            found = outcome(tmp_path / "flipped", bytes(data))
            if found is not None:
                assert library.load(bytes(data)).keys() == found.keys(), (at, bit)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path, data):
    outcome(tmp_path / "any", struct.pack("<Q", len(data)) + data)
    outcome(tmp_path / "any", data)
