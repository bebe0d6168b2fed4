"""Graphs of speech models: which weights go where, and what programs read in them."""

from __future__ import annotations

import pytest

from nemoconv.converters.onnx.graph import speech
from nemoconv.converters.onnx.graph.architectures import find
from nemoconv.converters.onnx.graph.builder import Weight
from nemoconv.converters.onnx.names.recover import required_shapes
from nemoconv.errors import CorruptCheckpoint
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.tensors.dtypes import BY_NAME

onnx = pytest.importorskip("onnx")

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 4,
}
CONFIGS = {
    "parakeet_ctc": {"vocab_size": 9, "encoder_config": ENCODER},
    "parakeet_rnnt": {"vocab_size": 9, "encoder_config": ENCODER, "decoder_hidden_size": 8},
    "parakeet_tdt": {"vocab_size": 9, "encoder_config": ENCODER, "decoder_hidden_size": 8},
    "canary": {
        "vocab_size": 16,
        "encoder_config": ENCODER,
        "decoder_config": {
            "vocab_size": 16,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "head_dim": 8,
            "intermediate_size": 8,
        },
    },
}


def weights(name: str) -> dict[str, Weight]:
    shapes = required_shapes(load_table(name), CONFIGS[name])
    kinds = {key: "int64" if key.endswith("tracked") else "float32" for key in shapes}
    return {key: Weight("w", 0, 0, BY_NAME[kinds[key]], shape) for key, shape in shapes.items()}


def build(name: str, held: dict[str, Weight], tokens: int | None = None) -> dict[str, bytes]:
    config = read_config(load_table(name).fields, CONFIGS[name])[0]
    return speech.build(find(name), config, held, {"key": "value"}, tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_in_a_graph_and_no_large_constant(name: str) -> None:
    held, seen = weights(name), set()
    graphs = build(name, held)
    for data in graphs.values():
        model = onnx.load_from_string(data)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        assert properties["nemoconv.files"].split() == list(graphs)
        assert properties["key"] == "value"
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                assert tuple(tensor.dims) == held[tensor.name].shape
                seen.add(tensor.name)
            else:
                assert len(tensor.raw_data) <= 64
    assert seen == held.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tensor_too_many_or_too_few(name: str) -> None:
    held = weights(name)
    with pytest.raises(CorruptCheckpoint, match="1 tensors have no place in a graph: unknown"):
        build(name, {**held, "unknown": held[min(held)]})
    inner = next(key.partition("layers.0.")[0] for key in held if "layers.0." in key)
    with pytest.raises(CorruptCheckpoint, match=r"1 tensors have no place in the graph: .*extra"):
        build(name, {**held, f"{inner}extra": held[min(held)]})
    for missing in held:
        if missing.endswith(".bias"):
            continue  # a linear layer may have none; the table tells
        fewer = {key: weight for key, weight in held.items() if key != missing}
        with pytest.raises(CorruptCheckpoint, match=f"the graph needs {missing}, which"):
            build(name, fewer)


@pytest.mark.parametrize(
    ("name", "tokens", "said"),
    [
        ("parakeet_ctc", None, {"model_type": "EncDecCTCModelBPE", "vocab_size": "8"}),
        ("parakeet_rnnt", 8, {"url": "parakeet_rnnt", "pred_rnn_layers": "2", "pred_hidden": "8"}),
        ("parakeet_tdt", 8, {"url": "parakeet_tdt", "vocab_size": "8"}),
        ("canary", 11, {"vocab_size": "11", "num_decoder_layers": "6", "decoder_hidden_size": "16"}),
        ("canary", None, {"vocab_size": "16", "model_type": "EncDecMultiTaskModel", "feat_dim": "16"}),
    ],
)
def test_what_sherpa_onnx_reads(name: str, tokens: int | None, said: dict[str, str]) -> None:
    for data in build(name, weights(name), tokens).values():
        properties = {e.key: e.value for e in onnx.load_from_string(data).metadata_props}
        assert said.items() <= properties.items()


def test_inputs_and_outputs_are_named_and_ordered_as_readers_expect() -> None:
    def names(model: str, file: str) -> tuple[list[str], list[str]]:
        graph = onnx.load_from_string(build(model, weights(model))[file]).graph
        return [value.name for value in graph.input], [value.name for value in graph.output]

    states = ["input_states_1", "input_states_2"]
    after = ["prednet_lengths", "output_states_1", "output_states_2"]
    assert names("parakeet_ctc", "model.onnx") == (["audio_signal", "length"], ["logprobs"])
    for model in ("parakeet_rnnt", "parakeet_tdt"):
        assert names(model, "encoder-model.onnx") == (
            ["audio_signal", "length"],
            ["outputs", "encoded_lengths"],
        )
        given = ["encoder_outputs", "targets", "target_length", *states]
        assert names(model, "decoder_joint-model.onnx") == (given, ["outputs", *after])
        assert names(model, "decoder.onnx") == (["targets", "target_length", *states], ["outputs", *after])
        assert names(model, "joiner.onnx") == (["encoder_outputs", "decoder_outputs"], ["outputs"])
    caches = range(6)
    assert names("canary", "decoder.onnx") == (
        ["decoder_input_ids", *[f"decoder_mems_list_{i}" for i in caches], "enc_states", "enc_mask"],
        ["logits", *[f"next_decoder_mem_list_{i}" for i in caches]],
    )
    assert names("canary", "encoder.onnx") == (["x", "x_len"], ["enc_states", "enc_len", "enc_mask"])
    assert set(names("canary", "decoder-model.onnx")[0]) == {
        "input_ids",
        "encoder_embeddings",
        "encoder_mask",
        "decoder_mems",
    }
    assert names("canary", "encoder-model.onnx")[1] == ["encoder_embeddings", "encoder_mask"]
