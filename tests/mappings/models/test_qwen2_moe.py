"""Qwen2-MoE: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("qwen2_moe")
NEMO = Symbol("nemo.collections.llm.gpt.model.qwen2", "Qwen2Config")
GIVEN = {"num_moe_experts": 4, "moe_shared_expert_intermediate_size": 40, "moe_shared_expert_gate": True}
GIVEN |= {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


class TestQwen2Moe(MappingTests):
    config = CONFIG


class TestQwen2MoeWithoutBias(MappingTests):
    config = {**CONFIG, "qkv_bias": False, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "qwen2_moe"})[0]
    theirs = transformers.Qwen2MoeConfig().to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_only_layers", [0]),
        ("decoder_sparse_step", 2),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("hidden_act", "gelu"),
        ("quantization_config", {}),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("moe_shared_expert_gate", False), ("qk_layernorm", True), ("moe_router_score_function", "sigmoid")],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    assert TABLE.nemo.read(NEMO, GIVEN, "here")["add_qkv_bias"] is True
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(NEMO, {**GIVEN, field: value}, "here")


def test_nemo_tells_it_from_a_dense_qwen2_by_its_experts() -> None:
    assert table_for_nemo(NEMO, GIVEN, "here") is TABLE
    dense = {name: value for name, value in GIVEN.items() if not name.startswith(("moe_", "num_moe_"))}
    assert table_for_nemo(NEMO, dense, "here").architecture == "qwen2"
