"""Llama 4 text: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 1, 0],
    "attn_temperature_tuning": False,
    "attention_chunk_size": 8192,
    "vocab_size": 66,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("llama4_text")
MODULE = "nemo.collections.llm.gpt.model.llama"
TUNING = ("attn_temperature_tuning",)


class TestLlama4(MappingTests):
    config = CONFIG


class TestLlama4EveryLayer(MappingTests):
    config = {**CONFIG, "interleave_moe_layer_step": 1, "no_rope_layers": [], "no_rope_layer_interval": 2}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "llama4_text"}, TUNING)[0]
    theirs = transformers.Llama4TextConfig().to_dict()
    assert read_config(TABLE.fields, theirs, TUNING)[0] == ours


def test_temperature_tuning_is_dropped_only_on_demand() -> None:
    tuned = {**CONFIG, "attn_temperature_tuning": True}
    with pytest.raises(UnsupportedConfig, match=r"8,192.*--allow-ignored attn_temperature_tuning"):
        read_config(TABLE.fields, tuned)
    config = read_config(TABLE.fields, tuned, TUNING)[0]
    assert config == read_config(TABLE.fields, CONFIG)[0]
    assert write_config(TABLE.fields, config)["attn_temperature_tuning"] is False
    read_config(TABLE.fields, {**tuned, "max_position_embeddings": 4096})
    read_config(TABLE.fields, {**tuned, "no_rope_layers": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts_per_tok", 2),
        ("no_rope_layers", [0, 1, 1, 0]),
        ("no_rope_layers", [1]),
        ("moe_layers", []),
        ("moe_layers", [4]),
        ("layer_types", ["full_attention"] * 4),
        ("attention_bias", True),
        ("attention_chunk_size", None),
        ("hidden_act", "gelu"),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_a_rotary_scaling_that_nemo_builds_without_is_refused() -> None:
    scaled = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = read_config(TABLE.fields, {**CONFIG, "rope_scaling": scaled})[0]
    with pytest.raises(UnsupportedConfig, match="rotary scaling"):
        TABLE.nemo.write(config)
    with pytest.raises(UnsupportedConfig, match="rope_scaling"):
        TABLE.nemo.read(Symbol(MODULE, "Llama4Experts16Config"), {}, "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("moe_layer_freq", [0, 1]),
        ("moe_layer_freq", [0] * 48),
        ("moe_router_topk", 2),
        ("moe_apply_probs_on_input", False),
        ("moe_router_score_function", "softmax"),
        ("rotary_interleaved", False),
        ("moe_shared_expert_intermediate_size", 1024),
        ("nope_layer_interval", 0),
        ("transformer_layer_spec", Symbol("elsewhere", "spec")),
    ],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(Symbol(MODULE, "Llama4Experts128Config"), {field: value}, "here")


def test_the_defaults_of_nemo() -> None:
    maverick = Symbol(MODULE, "Llama4Experts128Config")
    config = TABLE.nemo.read(maverick, {}, "here")
    assert (config["num_layers"], config["num_moe_experts"], config["qk_l2_norm"]) == (48, 128, False)
    assert write_config(TABLE.fields, config)["interleave_moe_layer_step"] == 2
    assert table_for_nemo(maverick, {}, "here") is TABLE
    assert table_for_nemo(Symbol(MODULE, "Llama31Config8B"), {}, "here") is load_table("llama")


@pytest.mark.parametrize(("step", "stacked"), [(1, True), (2, False)])
def test_layers_are_stacked_where_all_have_experts(tmp_path: Path, step: int, stacked: bool) -> None:
    samples.build(tmp_path / "hf", {**CONFIG, "interleave_moe_layer_step": step})
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with open_checkpoint(tmp_path / "nemo") as nemo:
        stored = set(nemo._metadata.tensors)  # type: ignore[attr-defined]
    number = "" if stacked else "1."
    assert f"module.decoder.layers.{number}mlp.experts.experts.linear_fc1.weight" in stored
    assert ("module.decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in stored) is not stacked
