"""GLM-4.5: the table's own tests, transformers' defaults, layers beyond the last, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "use_qk_norm": True,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "vocab_size": 66,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("glm4_moe")
BASE = Symbol("nemo.collections.llm.gpt.model.base", "GPTConfig")


class TestGlm4Moe(MappingTests):
    config = CONFIG


class TestGlm4MoeWithoutNorms(MappingTests):
    config = {**CONFIG, "use_qk_norm": False, "attention_bias": False, "n_shared_experts": 2}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "glm4_moe", "head_dim": 128})[0]
    theirs = transformers.Glm4MoeConfig(head_dim=128).to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours
    assert ours["rotary_percent"] == 0.5


def test_the_plain_class_of_nemo_is_known_by_what_is_set() -> None:
    _, fields = TABLE.nemo.write(read_config(TABLE.fields, CONFIG)[0])
    assert table_for_nemo(BASE, fields, "here") is TABLE
    assert fields["transformer_layer_spec"].symbol.name == "get_gpt_decoder_block_spec"
    assert fields["normalization"] == "RMSNorm"
    assert fields["position_embedding_type"] == "rope"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_topk_prob", False),
        ("first_k_dense_replace", 3),
        ("topk_group", 1),
        ("hidden_act", "gelu"),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value, **({"n_group": 4} if key == "topk_group" else {})})


@pytest.mark.parametrize(
    ("field", "value"),
    [("moe_layer_freq", [1, 0, 1]), ("moe_router_score_function", "softmax"), ("normalization", "LayerNorm")],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    _, fields = TABLE.nemo.write(read_config(TABLE.fields, CONFIG)[0])
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(BASE, {**fields, field: value}, "here")
