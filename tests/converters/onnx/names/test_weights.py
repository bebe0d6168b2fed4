"""Weights that a graph holds only approximately: decoded as ONNX Runtime does, and said to be lossy."""

from __future__ import annotations

import json

import numpy
import onnx_source
import pytest
import tiny

from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    UnsupportedError,
    UsageError,
)

from ..onnx_samples import assert_equal, edited, refused, sample

onnx = pytest.importorskip("onnx")


def test_norms_with_one_added(tmp_path):
    """The builder stores 1 + w in float32; w itself is gone, to half a unit of the last place of 1."""
    arrays = sample(tmp_path / "model", "genai_gemma")
    message = refused(tmp_path / "model", UnsupportedError, 5)
    assert "layernorm.weight' holds a norm's weight plus 1, rounded: the weight itself is lost" in message
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    assert any(note.startswith("LOSSY: 1 is taken off 5 norms") for note in report.notes)
    found = tiny.load(tmp_path / "out")
    for name, array in arrays.items():
        if "norm" in name:
            difference = found[name].view(numpy.float32) - array.view(numpy.float32)
            assert 0 < numpy.abs(difference).max() <= 1.2e-7, name
        else:
            assert numpy.array_equal(found[name], array), name


@pytest.mark.parametrize("zeros", [False, True])
def test_four_bits(tmp_path, zeros):
    """What ONNX Runtime computes with, neither more nor less, with zero points and without."""
    runtime = pytest.importorskip("onnxruntime")
    arrays = sample(tmp_path / "model", "genai-int4_llama")

    def edit(graph):
        points = numpy.random.default_rng(0).integers(0, 256, 32).astype(numpy.uint8)
        graph.initializer.append(onnx.numpy_helper.from_array(points, "points"))
        for node in graph.node:
            if "down_proj" in node.name:
                node.input.append("points")

    if zeros:
        edited(tmp_path / "model", edit)
    message = refused(tmp_path / "model", UnsupportedError, 5)
    assert "is quantized (MatMulNBits of UINT8)" in message
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    assert any(note.startswith("LOSSY: ") and "quantized weights" in note for note in report.notes)
    found = tiny.load(tmp_path / "out")
    assert found.keys() == arrays.keys()
    message = onnx.load(tmp_path / "model" / "model.onnx")
    checked = 0
    for node in message.graph.node:
        if node.op_type != "MatMulNBits" or "down_proj" not in node.name:
            continue
        columns = next(a.i for a in node.attribute if a.name == "K")
        rows = next(a.i for a in node.attribute if a.name == "N")
        info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        held = [t for t in message.graph.initializer if t.name in node.input]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMulNBits", ["x", *node.input[1:]], ["y"], domain="com.microsoft", **{
                a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name != "accuracy_level"})],
            "g", [info("x", kind, [columns, columns])], [info("y", kind, [columns, rows])], held,
        )  # fmt: skip
        opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
        one = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        session = runtime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        (product,) = session.run(None, {"x": numpy.eye(columns, dtype=numpy.float32)})
        layer = node.name.split("layers.")[1][0]
        weight = found[f"model.layers.{layer}.mlp.down_proj.weight"].view(numpy.float32)
        assert numpy.allclose(product.T, weight, rtol=1e-6, atol=1e-9)
        checked += 1
    assert checked == 2
    assert numpy.array_equal(found["model.norm.weight"], arrays["model.norm.weight"])


def test_a_table_of_four_bits(tmp_path):
    """An embedding that a tied head shares, as ONNX Runtime looks it up."""
    runtime = pytest.importorskip("onnxruntime")
    arrays = sample(tmp_path / "model", "genai-int4_llama3_tied")
    convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    found = tiny.load(tmp_path / "out")
    assert found.keys() == arrays.keys()
    message = onnx.load(tmp_path / "model" / "model.onnx")
    del message.graph.output[:]
    lookup = next(n for n in message.graph.node if n.op_type == "GatherBlockQuantized")
    kind = onnx.TensorProto.FLOAT
    message.graph.output.append(onnx.helper.make_tensor_value_info(lookup.output[0], kind, [1, 64, 32]))
    last = list(message.graph.node).index(lookup)
    del message.graph.node[last + 1 :]
    session = runtime.InferenceSession(message.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {
        entry.name: numpy.ones((1, 64), numpy.int64)
        for entry in session.get_inputs()
        if "past" not in entry.name
    }
    given |= {
        e.name: numpy.zeros((1, 2, 0, 8), numpy.float32) for e in session.get_inputs() if "past" in e.name
    }
    given["input_ids"] = numpy.arange(64)[None]
    (rows,) = session.run(None, given)
    assert numpy.array_equal(rows[0], found["model.embed_tokens.weight"].view(numpy.float32))


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT4", "UINT4"])
@pytest.mark.parametrize("axis", ["one", 0, 1, "blocks of rows", "blocks of columns"])
def test_quantized_and_dequantized(tmp_path, kind, axis):
    """A DequantizeLinear before each use of a weight [in, out]: the onnx reference says what it stands for."""
    arrays = sample(tmp_path / "model", "optimum_llama")
    graph = onnx.load(tmp_path / "model" / "model.onnx").graph
    node = [n for n in graph.node if n.op_type == "MatMul" and n.name.endswith("down_proj/MatMul")][1]
    random = numpy.random.default_rng(0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind))
    low, high = (
        (0, 1 << int(kind[-1])) if kind[0] == "U" else (-(1 << int(kind[-1]) - 1), 1 << int(kind[-1]) - 1)
    )
    codes = random.integers(low, high, (48, 32)).astype(dtype)
    shape = {"one": (), 0: (48,), 1: (32,), "blocks of rows": (3, 32), "blocks of columns": (48, 2)}[axis]
    number = {"one": 1, 0: 0, 1: 1, "blocks of rows": 0, "blocks of columns": -1}[axis]
    block = {"block_size": 16} if len(shape) == 2 else {}
    scales = random.normal(size=shape).astype(numpy.float32)
    zeros = numpy.asarray(random.integers(low, high, shape)).astype(dtype)
    attributes = {"axis": number, **block}
    held = [
        onnx.numpy_helper.from_array(a, n)
        for a, n in ((codes, "codes"), (scales, "scales"), (zeros, "zeros"))
    ]
    decode = onnx.helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["plain"], **attributes)

    def edit(graph):
        graph.initializer.extend(held)
        graph.node.insert(0, decode)
        for n in graph.node:
            if n.name == node.name:
                n.input[1] = "plain"

    edited(tmp_path / "model", edit)
    assert f"'codes' is quantized (DequantizeLinear of {kind})" in refused(
        tmp_path / "model", UnsupportedError, 5
    )
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    assert "LOSSY: 1 quantized weights are only approximations: codes" in report.notes
    name = "model.layers.1.mlp.down_proj.weight"
    value = onnx.helper.make_tensor_value_info("plain", onnx.TensorProto.FLOAT, [48, 32])
    alone = onnx.helper.make_graph([decode], "g", [], [value], held)
    one = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    from onnx.reference import ReferenceEvaluator

    (plain,) = ReferenceEvaluator(one).run(None, {})
    assert_equal(tmp_path / "out", {**arrays, name: plain.T.view(numpy.uint32)})


def test_other_quantizations(tmp_path):
    sample(tmp_path / "model", "optimum_llama")
    node = onnx.helper.make_node("MatMulInteger", ["logits", "logits"], ["z"], name="integers")
    edited(tmp_path / "model", lambda graph: graph.node.append(node))
    message = refused(tmp_path / "model", UnsupportedError, 5, dequantize=True)
    assert "MatMulInteger 'integers' computes with quantized weights" in message


def test_dequantize_without_anything_quantized(tmp_path):
    tiny.write(tmp_path / "hf")
    assert "dequantize means nothing for hf -> hf" in refused(tmp_path / "hf", UsageError, 2, dequantize=True)


def gemma(folder, *, dtype):
    """The builder's Gemma, as of bfloat16 weights: (arrays of the model as uint16)."""
    arrays = sample(folder, "genai_gemma", torch_dtype=dtype)
    message = onnx.load(folder / "model.onnx", load_external_data=False)
    data = numpy.fromfile(folder / "model.onnx.data", numpy.uint32) & numpy.uint32(0xFFFF0000)
    arrays = {name: array & numpy.uint32(0xFFFF0000) for name, array in arrays.items()}
    for tensor in message.graph.initializer:
        told = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        if "norm" in tensor.name:
            name = tensor.name.replace("model.layers.2.final_norm_layernorm", "model.norm")
            values = arrays[name].view(numpy.float32) + numpy.float32(1)
            data[told["offset"] // 4 :][: len(values)] = values.view(numpy.uint32)
    data.tofile(folder / "model.onnx.data")
    return {name: (array >> 16).astype(numpy.uint16) for name, array in arrays.items()}


def test_a_gemma_of_bfloat16_comes_back(tmp_path):
    arrays = gemma(tmp_path / "model", dtype="bfloat16")
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16", exact=True)
    found = tiny.load(tmp_path / "out")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert numpy.array_equal(found[name], array), name
    assert not any("LOSSY" in note for note in report.notes)


def test_a_gemma_that_does_not_say_so_does_not(tmp_path):
    gemma(tmp_path / "model", dtype="float32")
    message = refused(tmp_path / "model", UnsupportedError, 5, dtype="bfloat16")
    assert "holds a norm's weight plus 1, rounded: the weight itself is lost" in message
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "float32"
    assert onnx_source.CONFIGS["gemma"]["torch_dtype"] == "float32"


def test_what_torch_exports_of_a_gemma_of_bfloat16_comes_back(tmp_path):
    """The exporter folds 1 + weight into constants."""
    sample(tmp_path / "model", "dynamo-bfloat16_gemma2", torch_dtype="bfloat16")
    convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16", exact=True)
    found = tiny.load(tmp_path / "out")
    told = onnx_source.arrays(onnx_source.CONFIGS["gemma2"], bfloat16=True)
    assert found.keys() == told.keys()
    for name, array in told.items():
        assert numpy.array_equal(found[name], array >> 16), name
