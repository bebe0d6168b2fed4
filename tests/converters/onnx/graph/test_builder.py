"""The graph helper: names, constants, and weights that lie elsewhere."""

from __future__ import annotations

import pytest

from nemoconv.converters.onnx.graph.builder import FLOAT32, INT64, Graph, Weight
from nemoconv.errors import CorruptCheckpoint, UnsupportedError
from nemoconv.tensors.dtypes import BY_NAME

onnx = pytest.importorskip("onnx")

F32, BF16, F16 = (BY_NAME[name] for name in ("float32", "bfloat16", "float16"))


def weight(dtype: object = F32, shape: tuple[int, ...] = (2, 3), offset: int = 8) -> Weight:
    return Weight("w.safetensors", offset, 6 * dtype.itemsize, dtype, shape)  # type: ignore[attr-defined]


def parsed(graph: Graph) -> object:
    graph.output("y", FLOAT32, [2])
    return onnx.load_from_string(graph.model(("test", "1"), {"key": "value"}))


def test_a_weight_is_a_place_and_its_cast_is_shared() -> None:
    graph = Graph({"a.weight": weight(BF16)})
    assert graph.compute == F32
    assert graph.weight("a.weight") == graph.weight("a.weight") == "/a.weight"
    assert graph.stored("a.weight") == "a.weight"
    model = parsed(graph)
    (tensor,) = model.graph.initializer
    place = {entry.key: entry.value for entry in tensor.external_data}
    assert place == {"location": "w.safetensors", "offset": "8", "length": "12"}
    assert (tensor.name, list(tensor.dims), tensor.data_type) == (
        "a.weight",
        [2, 3],
        onnx.TensorProto.BFLOAT16,
    )
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [("Cast", ["a.weight"])]
    assert {entry.key: entry.value for entry in model.metadata_props} == {"key": "value"}


@pytest.mark.parametrize(
    ("kinds", "compute"), [((F16, F16), F16), ((F16, F32), F32), ((BF16, F32), F32), ((BF16, F16), F32)]
)
def test_half_precision_is_computed_with_where_there_is_nothing_else(kinds: tuple, compute: object) -> None:
    assert Graph({str(i): weight(kind) for i, kind in enumerate(kinds)}).compute == compute


def test_names_are_unique_and_say_where() -> None:
    graph = Graph({})
    with graph.scope("layers.0"), graph.scope("mlp"):
        names = [
            graph.op("Relu", "x"),
            graph.op("Relu", "x"),
            *graph.ops("Split", "x", outputs=["", "given"]),
        ]
    assert names == ["/layers.0/mlp/Relu", "/layers.0/mlp/Relu_2", "/layers.0/mlp/Split:0", "given"]
    with graph.scope("layers.1"):
        shared = [graph.once("mask", lambda: graph.op("Not", "x")) for _ in range(2)]
    assert shared == ["/mask/Not"] * 2


def test_constants_are_written_once() -> None:
    graph = Graph({})
    first = graph.constant([1, 2])
    assert graph.constant([1, 2]) == first
    others = {
        graph.constant([[1, 2]]),
        graph.constant([1, 2], BY_NAME["int32"]),
        graph.constant(1.5, FLOAT32),
    }
    assert len(others | {first}) == 4
    assert len(parsed(graph).graph.initializer) == 4


def test_left_out_attributes_and_inputs() -> None:
    graph = Graph({})
    graph.op("Clip", "x", "", graph.constant(1.0, FLOAT32), nothing=None, domain="com.microsoft")
    model = parsed(graph)
    (node,) = model.graph.node
    assert (list(node.attribute), node.input[1]) == ([], "")
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23, "com.microsoft": 1}


def test_every_weight_must_have_a_place_and_every_place_a_weight() -> None:
    graph = Graph({"used": weight(), "unused": weight()})
    graph.weight("used")
    with pytest.raises(CorruptCheckpoint, match="1 tensors have no place in the graph: unused"):
        graph.model(("test", "1"), {})
    with pytest.raises(CorruptCheckpoint, match="needs missing, which the model does not have"):
        graph.weight("missing")


def test_a_weight_that_nothing_computes_with_is_carried_along() -> None:
    weights = {"count": Weight("w", 0, 8, INT64, ()), "a": weight(F16)}
    with pytest.raises(UnsupportedError, match="type int64 cannot be computed with"):
        Graph(weights)
    graph = Graph(weights, unused=["count"], opset=20)
    assert graph.compute == F16
    graph.carry("count")
    graph.result("z", graph.weight("a"), [2, 3])
    model = parsed(graph)
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {
        "count": onnx.TensorProto.INT64,
        "a": onnx.TensorProto.FLOAT16,
    }
    # onnxruntime warns of initializers that no operation takes
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [
        ("Identity", ["count"]),
        ("Cast", ["a"]),
    ]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert (model.ir_version, model.opset_import[0].version) == (9, 20)


def test_types_that_nothing_computes_with_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="type float64, int64 cannot be computed with"):
        Graph({"a": weight(BY_NAME["float64"]), "b": weight(INT64), "c": weight()})
