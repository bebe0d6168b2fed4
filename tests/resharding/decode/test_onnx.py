"""Four- and eight-bit weights of graphs: the values that ONNX Runtime and the onnx reference compute."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint
from nemoconv.resharding.decode.onnx import Affine, PackedIntegers
from nemoconv.resharding.decode.quantized import decoded
from nemoconv.stores.files import SourceFile
from nemoconv.stores.memory_file import MemoryFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor, contiguous_strides

FLOAT32, UINT8 = BY_NAME["float32"], BY_NAME["uint8"]
HERE = SourceFile(__file__)


def stored(array, name="w"):
    array = numpy.ascontiguousarray(array)
    dtype = BY_NAME[array.dtype.name]
    file = MemoryFile(HERE, name, array.tobytes())
    extent = Extent(file, 0, (0,) * array.ndim, array.shape, contiguous_strides(array.shape, dtype.itemsize))
    return StoredTensor(name, dtype, array.shape, (extent,))


def pack(codes, bits):
    """Codes (whole bytes of them) as bytes, the first in the low bits."""
    groups = (codes.astype(numpy.int64) & ((1 << bits) - 1)).reshape(-1, 8 // bits)
    return sum(groups[:, i] << (i * bits) for i in range(8 // bits)).astype(numpy.uint8)


def example(rows, columns, block, bits, signed, stride, seed=0):
    random = numpy.random.default_rng(seed)
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    codes = numpy.zeros((rows, stride), numpy.int32)
    codes[:, :columns] = random.integers(low, high, (rows, columns))
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales = random.normal(size=grid).astype(numpy.float32)
    zeros = random.integers(low, high, grid).astype(numpy.int32)
    flat = codes.reshape(-1)
    flat = numpy.concatenate([flat, numpy.zeros(-flat.size % (8 // bits), numpy.int32)])
    packed = PackedIntegers(stored(pack(flat, bits)), bits, signed, stride)
    flat = numpy.concatenate([zeros.ravel(), numpy.zeros(-zeros.size % (8 // bits), numpy.int32)])
    points = PackedIntegers(stored(pack(flat, bits)), bits, signed, grid[1])
    encoding = Affine(packed, stored(scales), (rows, columns), block=block, zeros=points)

    def spread(array):
        wide = numpy.repeat(numpy.repeat(array, block[0], axis=0), block[1], axis=1)
        return wide[:rows, :columns]

    expected = (codes[:, :columns] - spread(zeros)).astype(numpy.float32) * spread(scales)
    return encoding, expected


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 20), block=st.sampled_from([(1, 4), (1, 16), (2, 1), (9, 20)]),
    bits=st.sampled_from([2, 4, 8]), signed=st.booleans(), extra=st.integers(0, 5), data=st.data(),
)  # fmt: skip
def test_any_box_is_decoded(rows, columns, block, bits, signed, extra, data):
    encoding, expected = example(rows, columns, block, bits, signed, columns + extra)
    tensor = decoded("w", encoding, FLOAT32)
    start = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    shape = data.draw(st.integers(1, rows - start[0])), data.draw(st.integers(1, columns - start[1]))
    box = expected[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    assert numpy.array_equal(read_box(tensor, start, shape), box)


def test_transposed():
    encoding, expected = example(6, 10, (1, 4), 4, False, 12)
    tensor = decoded("w", encoding, FLOAT32, transposed=True)
    assert numpy.array_equal(read_box(tensor, (0, 0), (10, 6)), expected.T)


def test_the_reference_of_onnx_agrees():
    """DequantizeLinear as the onnx package evaluates it."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_21  # noqa: F401

    encoding, expected = example(8, 12, (1, 4), 8, True, 12)
    codes = numpy.frombuffer(encoding.codes.extents[0].file.pread(96, 0), numpy.int8).reshape(8, 12)
    scales = numpy.frombuffer(encoding.scales.extents[0].file.pread(96, 0), numpy.float32).reshape(8, 3)
    node = onnx.helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1, block_size=4)
    info = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [node], "g",
        [info("x", kind.INT8, [8, 12]), info("s", kind.FLOAT, [8, 3]), info("z", kind.INT8, [8, 3])],
        [info("y", kind.FLOAT, [8, 12])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    from onnx.reference import ReferenceEvaluator

    zeros = numpy.frombuffer(encoding.zeros.stored.extents[0].file.pread(24, 0), numpy.int8).reshape(8, 3)
    (found,) = ReferenceEvaluator(model).run(None, {"x": codes, "s": scales, "z": zeros})
    assert numpy.array_equal(found, expected)


@pytest.mark.parametrize(
    "change",
    [{"block": (1, 5)}, {"stride": 14}, {"stride": 9}, {"shape": (7, 10)}, {"zeros": 1}, {"block": (2, 4)}],
)
def test_sizes_that_do_not_fit(change):
    encoding, _ = example(6, 10, (1, 4), 4, False, 12)

    def build(shape=(6, 10), block=(1, 4), stride=12, zeros=3):
        packed, points = replace(encoding.packed, stride=stride), replace(encoding.zeros, stride=zeros)
        return Affine(packed, encoding.scales, shape, block=block, zeros=points)

    build()
    with pytest.raises(CorruptCheckpoint, match="that do not make"):
        build(**change)


def test_signs_and_order():
    def four(data, signed, bits=4):
        return (
            PackedIntegers(stored(numpy.frombuffer(data, numpy.uint8)), bits, signed, 4)
            .take(0, 0, 4)
            .tolist()
        )

    assert four(b"\x8f\x70", True) == [-1, -8, 0, 7]
    assert four(b"\x8f\x70", False) == [15, 8, 0, 7]
    assert four(b"\xe4", True, 2) == [0, 1, -2, -1]
