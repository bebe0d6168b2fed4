"""Edited graphs and configs of other models: weights are followed to where they are used, or refused."""

from __future__ import annotations

import numpy
import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    MappingError,
    UnsupportedError,
)

from .onnx_samples import assert_equal, edited, refused, sample

onnx = pytest.importorskip("onnx")


def test_exchanged_names_are_noticed(tmp_path):
    """Query and key of the same shape, under each other's names: the graph says otherwise."""
    sample(tmp_path / "model", "dynamo-plain_llama_square")
    names = {
        f"model.model.layers.1.self_attn.{a}_proj.weight": f"model.model.layers.1.self_attn.{b}_proj.weight"
        for a, b in ("qk", "kq")
    }

    def edit(graph):
        for entry in graph.initializer:
            entry.name = names.get(entry.name, entry.name)
        for node in graph.node:
            node.input[:] = [names.get(value, value) for value in node.input]

    edited(tmp_path / "model", edit)
    assert refused(tmp_path / "model", MappingError, 5) == (
        "MODEL/model.onnx: 'model.model.layers.1.self_attn.k_proj.weight' has the name of another weight: in the "
        "graph it is the query weight of layer 1, model.layers.1.self_attn.q_proj.weight"
    )


def test_exchanged_uses_are_followed(tmp_path):
    """Without names only the use counts: the weight that multiplies the queries is q_proj."""
    arrays = sample(tmp_path / "model", "dynamo-plain_llama_square")
    names = {f"model.model.layers.0.self_attn.{a}_proj.weight": f"w{a}" for a in "qk"}

    def edit(graph):
        for entry in graph.initializer:
            entry.name = names.get(entry.name, entry.name)
        swapped = {"model.model.layers.0.self_attn.q_proj.weight": "wk",
                   "model.model.layers.0.self_attn.k_proj.weight": "wq"}  # fmt: skip
        for node in graph.node:
            node.input[:] = [swapped.get(value, value) for value in node.input]

    edited(tmp_path / "model", edit)
    convert(tmp_path / "model", tmp_path / "out", to="hf")
    q, k = (f"model.layers.0.self_attn.{a}_proj.weight" for a in "qk")
    assert_equal(tmp_path / "out", {**arrays, q: arrays[k], k: arrays[q]})


def test_order_in_the_file_means_nothing(tmp_path):
    arrays = sample(tmp_path / "model", "optimum_llama")

    def edit(graph):
        held = list(graph.initializer)[::-1]
        del graph.initializer[:]
        graph.initializer.extend(held)

    edited(tmp_path / "model", edit)
    convert(tmp_path / "model", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intermediate_size": 40}, "model.layers.0.mlp.gate_proj.weight, but has shape [48, 32], and the config asks for [40, 32]"),
        ({"vocab_size": 63}, "is the embedding weight, model.embed_tokens.weight, but has shape [64, 32]"),
        ({"num_key_value_heads": 4}, "has shape [16, 32], and the config asks for [32, 32]"),
    ],
)  # fmt: skip
def test_a_config_of_other_shapes(tmp_path, changes, words):
    sample(tmp_path / "model", "optimum_llama", **changes)
    assert words in refused(tmp_path / "model", MappingError, 5)


def test_a_config_of_other_parts(tmp_path):
    sample(tmp_path / "layers", "optimum_llama", num_hidden_layers=3)
    message = refused(tmp_path / "layers", MappingError, 5)
    assert "tensors that 'llama' needs are missing: model.layers.2." in message
    sample(tmp_path / "biases", "optimum_llama", attention_bias=True)
    assert "needs are missing: model.layers.0.self_attn.q_proj.bias" in refused(
        tmp_path / "biases", MappingError, 5
    )
    sample(tmp_path / "fewer", "dynamo_qwen3", num_hidden_layers=1)
    assert "tensors have no rule in the 'qwen3' table" in refused(tmp_path / "fewer", MappingError, 5)


def test_a_packed_projection_of_other_heads(tmp_path):
    sample(tmp_path / "model", "genai_llama", num_key_value_heads=1)
    message = refused(tmp_path / "model", MappingError, 5)
    assert (
        "is the key weight of layer 0, model.layers.0.self_attn.k_proj.weight, but has shape [16, 32]"
        in message
    )


def test_a_tied_model_whose_copies_differ(tmp_path):
    sample(tmp_path / "model", "optimum_llama", tie_word_embeddings=True)
    message = refused(tmp_path / "model", MappingError, 5)
    assert message.startswith("MODEL: the config ties lm_head.weight to model.embed_tokens.weight, but at ")


def test_an_extra_weight(tmp_path):
    sample(tmp_path / "model", "optimum_llama")

    def edit(graph):
        extra = onnx.numpy_helper.from_array(numpy.ones((64, 4), numpy.float32), "extra")
        graph.initializer.append(extra)
        graph.node.append(onnx.helper.make_node("MatMul", ["logits", "extra"], ["more"]))

    edited(tmp_path / "model", edit)
    assert "1 weights have no place in the model: extra" in refused(tmp_path / "model", MappingError, 5)


def test_sub_graphs(tmp_path):
    sample(tmp_path / "model", "optimum_llama")
    body = onnx.helper.make_graph([], "body", [], [])
    node = onnx.helper.make_node("If", ["logits"], ["z"], name="branch", then_branch=body, else_branch=body)
    edited(tmp_path / "model", lambda graph: graph.node.append(node))
    message = refused(tmp_path / "model", UnsupportedError, 5)
    assert "has sub-graphs (If branch, If branch), which are not converted" in message


def test_rows_in_another_order(tmp_path):
    """Query and key of a packed projection, exchanged in the graph: Hugging Face's order is another."""
    sample(tmp_path / "model", "dynamo_gpt2")

    def edit(graph):
        node = next(node for node in graph.node if node.op_type == "Split")
        first, second = node.output[:2]
        node.output[0], node.output[1] = second, first

    edited(tmp_path / "model", edit)
    assert "has its rows in another order than transformer.h.0.attn.c_attn.weight" in refused(
        tmp_path / "model", MappingError, 5
    )


def test_experts_are_numbered_as_the_router_has_them(tmp_path):
    """Tokens of expert 1 given to the layers of expert 0, and the other way round."""
    arrays = sample(tmp_path / "model", "optimum_qwen3_moe")

    def edit(graph):
        (masks,) = {node.output[0] for node in graph.node if node.name == "/model/layers.1/mlp/Transpose"}
        first, second, _ = (node for node in graph.node if masks in node.input)
        first.input[1], second.input[1] = second.input[1], first.input[1]

    edited(tmp_path / "model", edit)
    convert(tmp_path / "model", tmp_path / "out", to="hf")
    expert = "model.layers.1.mlp.experts.{}.{}_proj.weight"
    for kind in ("gate", "up", "down"):
        one, two = expert.format(0, kind), expert.format(1, kind)
        arrays[one], arrays[two] = arrays[two], arrays[one]
    assert_equal(tmp_path / "out", arrays)


def test_experts_that_are_not_told_apart(tmp_path):
    sample(tmp_path / "model", "optimum_qwen3_moe")

    def same_tokens(graph):
        (masks,) = {node.output[0] for node in graph.node if node.name == "/model/layers.1/mlp/Transpose"}
        first, second, _ = (node for node in graph.node if masks in node.input)
        second.input[1] = first.input[1]

    edited(tmp_path / "model", same_tokens)
    assert "layer 1: 2 of the router's 3 experts were found" in refused(tmp_path / "model", MappingError, 5)


def test_experts_picked_by_something_else_than_the_router(tmp_path):
    sample(tmp_path / "model", "dynamo_mixtral")

    def edit(graph):
        pick = next(node for node in graph.node if node.op_type == "TopK")
        axis = onnx.helper.make_attribute("axis", 0)
        del pick.attribute[:]
        pick.attribute.append(axis)

    edited(tmp_path / "model", edit)
    message = refused(tmp_path / "model", MappingError, 5)
    assert "layer 0: the graph does not tell which experts MatMul 'node_bmm' multiplies" in message


def test_a_table_for_two_things(tmp_path):
    """Tokens and positions are told apart by what looks them up, not by their sizes, which are the same."""
    sample(tmp_path / "model", "dynamo_gpt2")

    def edit(graph):
        tables = {entry.name for entry in graph.initializer if list(entry.dims) == [24, 16]}
        first, second = (node for node in graph.node if "Gather" in node.op_type and node.input[0] in tables)
        second.input[1] = first.input[1]

    edited(tmp_path / "model", edit)
    assert "two tables look like that of embedding: " in refused(tmp_path / "model", MappingError, 5)


def test_a_correction_of_the_router_that_moves_experts(tmp_path):
    """Scores in another order than the router gives them would number experts otherwise."""
    sample(tmp_path / "model", "dynamo_glm4_moe")

    def edit(graph):
        place = next(i for i, node in enumerate(graph.node) if node.op_type == "Add" and any(
            other.op_type == "Sigmoid" and other.output[0] == node.input[0] for other in graph.node))  # fmt: skip
        scores = graph.node[place].input[0]
        turned = onnx.numpy_helper.from_array(numpy.array([2, 0, 1]), "turned")
        graph.initializer.append(turned)
        graph.node[place].input[0] = "moved"
        moved = onnx.helper.make_node("Gather", [scores, "turned"], ["moved"], axis=1)
        graph.node.insert(place, moved)

    edited(tmp_path / "model", edit)
    message = refused(tmp_path / "model", MappingError, 5)
    assert "layer 1: the graph does not tell which experts MatMul" in message
