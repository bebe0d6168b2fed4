"""Qwen3-MoE: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("qwen3_moe")
MODULE = "nemo.collections.llm.gpt.model.qwen3"


class TestQwen3Moe(MappingTests):
    config = CONFIG


class TestQwen3MoeTied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True, "norm_topk_prob": False}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "qwen3_moe"})[0]
    theirs = transformers.Qwen3MoeConfig().to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours


def test_both_spellings_of_the_number_of_experts() -> None:
    renamed = {key: value for key, value in CONFIG.items() if key != "num_experts"} | {"num_local_experts": 4}
    config = read_config(TABLE.fields, CONFIG)[0]
    assert read_config(TABLE.fields, renamed)[0] == config
    written = write_config(TABLE.fields, config)
    assert written["num_experts"] == written["num_local_experts"] == 4
    with pytest.raises(UnsupportedConfig, match=r"num_experts.*disagree"):
        read_config(TABLE.fields, {**CONFIG, "num_local_experts": 8})


@pytest.mark.parametrize("normalized", [True, False])
def test_normalized_weights_are_a_softmax_after_the_choice(normalized: bool) -> None:
    config = read_config(TABLE.fields, {**CONFIG, "norm_topk_prob": normalized})[0]
    assert TABLE.nemo.write(config)[1]["moe_router_pre_softmax"] is not normalized


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_only_layers", [0]),
        ("decoder_sparse_step", 2),
        ("use_sliding_window", True),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("quantization_config", {}),
        ("norm_topk_prob", None),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match="sliding_window" if "sliding" in key else key):
        read_config(TABLE.fields, {**CONFIG, key: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("moe_shared_expert_intermediate_size", 64), ("qk_layernorm", False), ("moe_layer_freq", [0, 1])],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(Symbol(MODULE, "Qwen3Config30B_A3B"), {field: value}, "here")


def test_the_defaults_of_nemo() -> None:
    large = Symbol(MODULE, "Qwen3Config235B_A22B")
    config = TABLE.nemo.read(large, {}, "here")
    sizes = TABLE.sizes(config)
    assert (sizes["layers"], sizes["experts"], sizes["moe_ffn"], sizes["head_dim"]) == (94, 128, 1536, 128)
    assert (config["num_query_groups"], config["moe_router_topk"]) == (4, 8)
    assert table_for_nemo(large, {}, "here") is TABLE
