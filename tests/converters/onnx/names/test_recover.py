"""ONNX models of other exporters come back as the Hugging Face models that they were made from, to the bit."""

from __future__ import annotations

import json

import numpy
import onnx_source
import pytest
import tiny

from nemoconv.converters.look.verify import verify
from nemoconv.converters.onnx.names.roles import roles_of
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    UnsupportedError,
    UsageError,
)
from nemoconv.mappings import architectures, load_table, samples, table_for
from nemoconv.mappings.hf.fields import read_config

from ..onnx_samples import assert_equal, refused, sample

onnx = pytest.importorskip("onnx")


EXACT = [
    "genai_llama",
    "genai_llama3_tied",
    "genai_qwen3",
    "optimum_llama",
    "optimum_qwen2",
    "dynamo_qwen3",
    "dynamo_llama_biases",
    "dynamo-plain_llama_square",
    "dynamo-plain_gemma",
    "genai_phi3",
    "dynamo_phi3",
    "dynamo_gpt2",
    "dynamo_gpt_neox",
    "optimum_gpt_neox",
    "dynamo_bert",
    "optimum_bert_lm",
    "dynamo_mixtral",
    "dynamo_qwen3_moe",
    "optimum_qwen3_moe",
    "dynamo_glm4_moe",
    "genai_gpt_oss",
    "dynamo_gpt_oss",
]


# --- other exporters -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_every_bit_comes_back(tmp_path, name):
    arrays = sample(tmp_path / "model", name)
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", verify=True)
    assert_equal(tmp_path / "out", arrays)
    assert "tensor names found by places in the graph" in report.notes
    assert report.source_format == "onnx"
    told = onnx_source.CONFIGS[name.partition("_")[2]]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    fields = table_for(told, name).fields
    assert read_config(fields, told)[0] == read_config(fields, written)[0]


def test_into_nemo_and_back(tmp_path):
    arrays = sample(tmp_path / "model", "dynamo_qwen3")
    convert(tmp_path / "model", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2, verify=True)
    assert verify(tmp_path / "model", tmp_path / "nemo").equal
    convert(tmp_path / "nemo", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", arrays)


def test_slices_are_read_through_transposed_weights(tmp_path):
    arrays = sample(tmp_path / "model", "genai_llama")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        for name in checkpoint.keys():  # noqa: SIM118 - not a mapping
            whole = arrays[name]
            index = (slice(1, 5), slice(2, 7))[: whole.ndim]
            assert checkpoint.read(name, index).tobytes() == whole[index].tobytes(), name


def test_bfloat16_comes_back_out_of_float32(tmp_path):
    """An exporter's float32 of a bfloat16 model: every value fits, NaNs with payloads too."""
    arrays = sample(tmp_path / "model", "genai_llama", torch_dtype="bfloat16")
    data = tmp_path / "model" / "model.onnx.data"
    values = numpy.fromfile(data, numpy.uint32) & numpy.uint32(0xFFFF0000)
    values.tofile(data)
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16", exact=True)
    assert_equal(tmp_path / "out", {name: (a >> 16).astype(numpy.uint16) for name, a in arrays.items()})
    assert "no float32 value was rounded: all of them are bfloat16 numbers" in report.notes


def test_float32_that_never_was_bfloat16(tmp_path):
    arrays = sample(tmp_path / "model", "genai_llama")
    message = refused(tmp_path / "model", UnsupportedError, 5, dtype="bfloat16", exact=True)
    rounded = sum(int(numpy.count_nonzero(a & 0xFFFF)) for a in arrays.values())
    assert message.startswith(f"MODEL: {rounded:,} values are not exact in the new dtype, in decoder.")
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16")
    assert f"{rounded:,} float32 values were rounded to bfloat16" in report.notes
    with pytest.raises(UsageError, match="exact cannot be checked for .*: float32 to float16"):
        convert(tmp_path / "model", tmp_path / "half", to="hf", dtype="float16", exact=True)


# --- nemoconv's own graphs -------------------------------------------------------------------------


GPT2 = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 67}
BERT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 67,
    "max_position_embeddings": 128,
}
LLAMA = {**BERT, "num_key_value_heads": 2, "rope_theta": 50000.0}
WINDOW = {"head_dim": 16, "sliding_window": 20}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
#: architectures whose weights are named by their places
ROLES = [name for name in architectures() if roles_of(load_table(name))]
#: configs of architectures that are no plain Llama
OTHERS = {
    "glm": {**LLAMA, "head_dim": 8},
    "glm4": {**LLAMA, "head_dim": 8},
    "seed_oss": {**LLAMA, "head_dim": 8},
    "ernie4_5": {**LLAMA, "head_dim": 8},
    "smollm3": {**LLAMA, "tie_word_embeddings": True},
    "phi3": {**LLAMA, "pad_token_id": 0},
    "gemma": {**LLAMA, "head_dim": 16},
    "gemma2": {**LLAMA, **WINDOW},
    "gemma3_text": {**LLAMA, **WINDOW, "sliding_window_pattern": 2},
    "nemotron": {**LLAMA, "head_dim": 16},
    "starcoder2": {**LLAMA, "sliding_window": 20},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**LLAMA, **EXPERTS},
    "glm4_moe": {
        **LLAMA,
        "head_dim": 8,
        "use_qk_norm": True,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_nextn_predict_layers": 0,
    },
    "qwen2_moe": {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 20},
    "gpt_oss": {
        **LLAMA,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 20,
    },
    "baichuan": BERT,
    "chatglm": {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "kv_channels": 8,
        "padded_vocab_size": 67,
        "seq_length": 128,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
    },
    "mimo": {**LLAMA, "num_nextn_predict_layers": 0},
    "stablelm": {**LLAMA, "use_qkv_bias": True},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": {**BERT, "rotary_emb_base": 50000.0, "use_parallel_residual": False},
    **{name: BERT for name in ROLES if name.startswith("bert")},
}


@pytest.mark.parametrize(
    ("architecture", "flavor"),
    [
        (name, flavor)
        for name in sorted(ROLES)
        for flavor in ("std", "genai")
        if flavor == "std" or not name.startswith("bert")  # an encoder has one flavour
    ],
)
def test_the_places_agree_with_the_names_we_write(tmp_path, architecture, flavor):
    """Writer and reader were written apart: without the mark, places alone give back every name."""
    table = load_table(architecture)
    config = {
        "model_type": table.model_type,
        "architectures": [table.hf_class],
        "torch_dtype": "bfloat16",
        **OTHERS.get(architecture, LLAMA),
    }
    samples.build(tmp_path / "hf", config)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", flavor=flavor, pack=True)
    message = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    del message.metadata_props[:]
    renamed = {entry.name: f"w{n}" for n, entry in enumerate(message.graph.initializer)}
    for entry in message.graph.initializer:
        entry.name = renamed[entry.name]
    for node in message.graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    (tmp_path / "onnx" / "model.onnx").write_bytes(message.SerializeToString())
    (tmp_path / "onnx" / "nemoconv_manifest.json").unlink()  # it is changed on purpose
    convert(tmp_path / "onnx", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", tiny.load(tmp_path / "hf"))


@pytest.mark.parametrize("pack", [False, True])
def test_our_own_files(tmp_path, pack):
    arrays = tiny.write(tmp_path / "hf", shards=2)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", pack=pack)
    report = convert(tmp_path / "onnx" / "model.onnx", tmp_path / "out", to="hf", verify=True)
    assert_equal(tmp_path / "out", arrays)
    assert "tensor names found by names that nemoconv wrote" in report.notes
