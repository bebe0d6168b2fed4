"""DeepSeek V2: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "vocab_size": 67,
    "max_position_embeddings": 1024,
    "rope_theta": 10000,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("deepseek_v2")
MODULE = "nemo.collections.llm.gpt.model.deepseek"


class TestDeepseekV2(MappingTests):
    config = CONFIG


class TestDeepseekV2LowRank(MappingTests):
    config = {**CONFIG, "q_lora_rank": 12, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    told = {"num_experts_per_tok": 6}  # None there, which no model can have
    ours = read_config(TABLE.fields, {"model_type": "deepseek_v2", **told})[0]
    theirs = transformers.DeepseekV2Config(**told).to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {}),
        ("norm_topk_prob", True),
        ("scoring_func", "sigmoid"),
        ("topk_method", "noaux_tc"),
        ("mlp_bias", True),
        ("attention_bias", True),
        ("num_key_value_heads", 1),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_groups_that_megatron_ranks_by_other_experts_are_refused() -> None:
    """The 236B model: transformers ranks a group by its best expert, Megatron by its best two."""
    large = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "num_experts_per_tok": 6}
    with pytest.raises(UnsupportedConfig, match="Megatron would choose other groups"):
        read_config(TABLE.fields, {**CONFIG, **large})
    config = TABLE.nemo.read(Symbol(MODULE, "DeepSeekV2Config"), {}, "here")
    with pytest.raises(UnsupportedConfig, match="transformers would choose other groups"):
        write_config(TABLE.fields, {**config, "vocab_size": 10})


def test_the_defaults_of_nemo() -> None:
    lite = Symbol(MODULE, "DeepSeekV2LiteConfig")
    config = TABLE.nemo.read(lite, {}, "here")
    hf = write_config(TABLE.fields, {**config, "vocab_size": 102400})
    assert (hf["first_k_dense_replace"], hf["n_shared_experts"], hf["q_lora_rank"]) == (1, 2, None)
    assert hf["rope_parameters"]["mscale_all_dim"] == 0.707
    assert (hf["topk_method"], hf["n_group"]) == ("greedy", None)
    assert table_for_nemo(lite, {}, "here") is TABLE
