"""Weights are found by their place in the graph, whatever they are called and however they are stored."""

from __future__ import annotations

import pytest

from nemoconv.converters.onnx.names.dataflow import Dataflow
from nemoconv.converters.onnx.names.places import find_places
from nemoconv.converters.onnx.names.roles import WeightPlace
from nemoconv.converters.onnx.names.values import Rows
from nemoconv.errors import CorruptCheckpoint, MappingError, UnsupportedError
from nemoconv.formats.onnx.file import OnnxNode
from nemoconv.formats.onnx.types import TYPES

from ..onnx_drawing import Drawing

HIDDEN = 8


def norm(g, x, name, offset=False):
    """A norm as torch's exporter writes it."""
    mean = g.node("ReduceMean", g.node("Pow", x, g.constant("two", 2.0)))
    scaled = g.node("Mul", x, g.node("Reciprocal", g.node("Sqrt", mean)))
    weight = g.weight(name, (HIDDEN,))
    if offset:
        weight = g.node("Add", weight, g.constant("one", 1.0))
    return g.node("Mul", weight, scaled)


def rotate(g, x):
    """Rotary embedding from tables looked up by position."""
    g.weight("cos", (64, HIDDEN))
    cos = g.node("Gather", "cos", "position_ids")
    return g.node("Add", g.node("Mul", x, cos), g.node("Mul", g.node("Neg", x), cos))


def linear(g, x, name, style="matmul", bias=False, kind=TYPES[1]):
    rows, columns = 12, HIDDEN
    if style == "gemm":
        return g.node("Gemm", x, g.weight(name, (rows, columns), kind), *(
            [g.weight(name + ".b", (rows,))] if bias else []), transB=1)  # fmt: skip
    if style == "transpose":
        turned = g.node("Transpose", g.weight(name, (rows, columns), kind), perm=(1, 0))
        out = g.node("MatMul", x, turned)
    else:
        out = g.node("MatMul", x, g.weight(name, (columns, rows), kind))
    return g.node("Add", g.weight(name + ".b", (rows,)), out) if bias else out


def layer(g, x, n, style="matmul", order="qkvgu", swap=None, bias=False, fused=None, gate=True, offset=False):
    """One decoder layer; ``order`` is that in which projections are written, ``swap`` names to exchange."""
    names = {key: f"w{n}_{i}" for i, key in enumerate("qkvogud")}
    if swap:
        a, b = swap
        names[a], names[b] = names[b], names[a]
    y = norm(g, x, f"n{n}_in", offset)
    if fused:
        qkv = linear(g, y, f"w{n}_qkv", style, bias)
        mixed = g.node(
            "GroupQueryAttention", qkv, "", "", f"past.{n}.key", f"past.{n}.value", domain="com.microsoft",
            outputs=(f"a{n}", f"present.{n}.key", f"present.{n}.value"), rotary_interleaved=0,
            num_heads=2, kv_num_heads=1,
        )  # fmt: skip
    else:
        made = {p: linear(g, y, names[p], style, bias) for p in order if p in "qkv"}
        q, k = rotate(g, made["q"]), rotate(g, made["k"])
        k = g.node("Concat", f"past.{n}.key", k, outputs=(f"present.{n}.key",))
        v = g.node("Concat", f"past.{n}.value", made["v"], outputs=(f"present.{n}.value",))
        shape = g.node("Shape", made["q"])
        k = g.node("Expand", k, shape)
        scores = g.node("MatMul", q, g.node("Transpose", k, perm=(0, 1, 3, 2)))
        weights = g.node("Softmax", g.node("Add", scores, "position_ids"), axis=-1)
        mixed = g.node("MatMul", weights, v)
    g.outputs += [f"present.{n}.key", f"present.{n}.value"]
    x = g.node("Add", x, linear(g, mixed, names["o"], style, bias))
    y = norm(g, x, f"n{n}_mlp", offset)
    made = {p: linear(g, y, names[p], style, bias) for p in order if p == "u" or (p == "g" and gate)}
    if gate:
        wide = g.node("Mul", g.node("Mul", made["g"], g.node("Sigmoid", made["g"])), made["u"])
    else:
        wide = g.node("Gelu", made["u"])
    return g.node("Add", x, linear(g, wide, names["d"], style, bias))


def decoder(layers=2, tied=False, **style) -> Drawing:
    g = Drawing()
    x = g.node("Gather", g.weight("table", (50, HIDDEN)), "input_ids")
    for n in range(layers):
        x = layer(g, x, n, **style)
    y = norm(g, x, "n_out", style.get("offset", False))
    if tied:
        g.node("MatMul", y, g.node("Transpose", "table", perm=(1, 0)), outputs=("logits",))
    else:
        g.node("Identity", linear(g, y, "head"), outputs=("logits",))
    return g


def places(g):
    return {str(place): weight for place, weight in find_places(Dataflow(g.onnx())).items()}


ROLES = ("query", "key", "value", "attention output", "gate", "up", "down")


@pytest.mark.parametrize("order", ["qkvgu", "vkqug", "kqvgu"])
@pytest.mark.parametrize("style", ["matmul", "gemm", "transpose"])
def test_every_weight_is_found(style, order):
    found = places(decoder(style=style, order=order))
    expected = {"embedding weight": "table", "head weight": "head", "final norm weight": "n_out"}
    for n in (0, 1):
        expected |= {f"{role} weight of layer {n}": f"w{n}_{i}" for i, role in enumerate(ROLES)}
        expected |= {
            f"input norm weight of layer {n}": f"n{n}_in",
            f"mlp norm weight of layer {n}": f"n{n}_mlp",
        }
    assert {place: weight.name for place, weight in found.items()} == expected
    assert {weight.transposed for place, weight in found.items() if "query" in place} == {style == "matmul"}


def test_biases():
    found = places(decoder(bias=True))
    assert found["query bias of layer 1"].name == "w1_0.b"
    assert found["down bias of layer 0"].name == "w0_6.b"
    found = places(decoder(bias=True, style="gemm"))
    assert found["value bias of layer 1"].name == "w1_2.b"


@pytest.mark.parametrize("swap", ["qk", "kv", "gu", "qo"])
def test_names_mean_nothing(swap):
    """The same initializers used in exchanged places are found in exchanged places."""
    roles = dict(zip("qkvogud", ROLES, strict=True))
    plain, other = places(decoder()), places(decoder(swap=swap))
    a, b = (f"{roles[letter]} weight of layer 1" for letter in swap)
    assert (other[a].name, other[b].name) == (plain[b].name, plain[a].name)


def test_packed_projections():
    found = find_places(Dataflow(decoder(fused=True).onnx()))
    runs = {"query": (0, 6), "key": (6, 3), "value": (9, 3)}
    for role, run in runs.items():
        weight = found[WeightPlace(role, 1)]
        assert weight.name == "w1_qkv"
        assert weight.rows == Rows(*run, 12)


def test_tied_heads_plain_mlps_and_offsets():
    found = places(decoder(tied=True, gate=False, offset=True))
    assert found["head weight"].name == found["embedding weight"].name == "table"
    assert not found["head weight"].transposed
    assert "gate weight of layer 0" not in found
    assert found["input norm weight of layer 0"].plus_one
    assert not places(decoder())["input norm weight of layer 0"].plus_one


def test_one_layer_and_many():
    assert len(places(decoder(layers=1))) == 12
    assert len(places(decoder(layers=9))) == 3 + 9 * 9


# --- what is refused -------------------------------------------------------------------------------


def refused(g, kind=MappingError):
    with pytest.raises(kind) as caught:
        places(g)
    return caught.value.message


def test_a_weight_beside_the_projections():
    g = decoder()
    g.node("MatMul", g.nodes[next(i for i, n in enumerate(g.nodes) if "w1_0" in n.inputs)].inputs[0],
           g.weight("extra", (HIDDEN, 3)), outputs=("extra_out",))  # fmt: skip
    assert "stands beside query, key and value" in refused(g)


def test_a_weight_that_feeds_nothing_known():
    g = decoder()
    g.node("MatMul", "logits", g.weight("extra", (12, 3)), outputs=("more",))
    assert "1 weights have no place in the model: extra" in refused(g)


def test_a_norm_too_many():
    g = Drawing()
    x = g.node("Gather", g.weight("table", (50, HIDDEN)), "input_ids")
    x = norm(g, x, "strange")
    x = layer(g, x, 0)
    g.node("Identity", linear(g, norm(g, x, "n_out"), "head"), outputs=("logits",))
    assert "1 weights have no place in the model: strange" in refused(g)


def test_kept_keys_that_are_values():
    g = decoder()
    for i, node in enumerate(g.nodes):
        if node.outputs[0].startswith("present.1"):
            other = node.outputs[0].replace("key", "VALUE").replace("value", "key").replace("VALUE", "value")
            g.nodes[i] = OnnxNode(node.op, node.name, node.inputs, (other,))
    renamed = {"present.1.key": "present.1.value", "present.1.value": "present.1.key"}
    for i, node in enumerate(g.nodes):
        if node.op in ("Expand", "MatMul"):
            g.nodes[i] = OnnxNode(
                node.op,
                node.name,
                tuple(renamed.get(v, v) for v in node.inputs),
                node.outputs,
                node.attributes,
            )
    assert "present.1.key is not made by what its attention takes for the key" in refused(g)


def test_present_of_layers_that_are_not_there():
    g = decoder()
    g.outputs.append("present.7.key")
    assert "gives present.7.key, but has 2 layers" in refused(g)


def test_one_projection_for_query_and_key():
    g = decoder()
    first = next(n for n in g.nodes if "w1_1" in n.inputs)
    second = next(n for n in g.nodes if "w1_0" in n.inputs)
    for i, node in enumerate(g.nodes):
        changed = tuple(second.outputs[0] if v == first.outputs[0] else v for v in node.inputs)
        g.nodes[i] = OnnxNode(node.op, node.name, changed, node.outputs, node.attributes)
    assert "query, key and value come from 2 linear layers" in refused(g)


def test_two_gates_and_none():
    g = decoder()
    g.nodes = [
        OnnxNode("Relu" if n.op == "Mul" and any("Sigmoid" in m.op and m.outputs[0] in n.inputs for m in g.nodes)
             else n.op, n.name, n.inputs, n.outputs, n.attributes)
        for n in g.nodes if n
    ]  # fmt: skip
    places(g)  # another activation is one all the same
    g = decoder()
    g.nodes = [
        OnnxNode("Neg" if n.op == "Sigmoid" else n.op, n.name, n.inputs, n.outputs, n.attributes)
        for n in g.nodes
    ]
    assert "0 of the MLP's first linear layers have an activation" in refused(g)


def test_softmax_along_another_axis():
    g = decoder()
    g.nodes = [
        OnnxNode(n.op, n.name, n.inputs, n.outputs, {"axis": 2} if n.op == "Softmax" else n.attributes)
        for n in g.nodes
    ]
    assert "is not along the last axis" in refused(g, UnsupportedError)


def test_rotation_of_neighbours():
    g = decoder(fused=True)
    g.nodes = [
        OnnxNode(n.op, n.name, n.inputs, n.outputs, {**n.attributes, "rotary_interleaved": 1} if "Query" in n.op else n.attributes, n.domain)
        for n in g.nodes
    ]  # fmt: skip
    assert "rotates neighbours, not halves" in refused(g, UnsupportedError)
    assert find_places(Dataflow(g.onnx()), neighbours=True)
    g = decoder(fused=True)
    g.nodes = [
        OnnxNode(n.op, n.name, n.inputs, n.outputs, {**n.attributes, "do_rotary": 1}, n.domain)
        for n in g.nodes
    ]
    with pytest.raises(UnsupportedError, match="rotates halves, not neighbours"):
        find_places(Dataflow(g.onnx()), neighbours=True)


def test_scaled_products():
    g = decoder(style="gemm")
    g.nodes = [
        OnnxNode(
            n.op,
            n.name,
            n.inputs,
            n.outputs,
            {**n.attributes, "alpha": 0.5} if n.op == "Gemm" else n.attributes,
        )
        for n in g.nodes
    ]
    assert "scales or transposes what it multiplies" in refused(g, UnsupportedError)


def test_no_decoder_at_all():
    g = Drawing()
    g.node("MatMul", "input_ids", g.weight("w", (4, 4)), outputs=("logits",))
    assert "no attention was found" in refused(g)


def test_nodes_out_of_order_and_values_made_twice():
    g = decoder()
    g.nodes.reverse()
    assert "before anything gives it" in refused(g, CorruptCheckpoint)
    g = decoder()
    g.nodes.append(g.nodes[-1])
    assert "two operations give 'logits'" in refused(g, CorruptCheckpoint)


def test_a_loop_is_out_of_order():
    g = decoder()
    first = g.nodes[0]
    g.nodes[0] = OnnxNode(first.op, first.name, ("table", "logits"), first.outputs)
    assert "uses 'logits' before anything gives it" in refused(g, CorruptCheckpoint)
