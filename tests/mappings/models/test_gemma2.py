"""Gemma 2: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config(
    "gemma2", head_dim=16, sliding_window=20, query_pre_attn_scalar=12, final_logit_softcapping=None
)


class TestGemma2(MappingTests):
    config = CONFIG


class TestGemma2Untied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": False}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("gemma2", "Gemma2Config")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("attention_bias", True),
        ("hidden_activation", "silu"),
        ("use_bidirectional_attention", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("sliding_window", None),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    dense.assert_refused("gemma2", key, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("multi_latent_attention", True),
        ("num_moe_experts", 4),
        ("softmax_scale", 0.5),
        ("position_embedding_type", "yarn"),
        ("rotary_interleaved", True),
        ("layernorm_zero_centered_gamma", False),
        ("add_qkv_bias", True),
        ("window_size", [4, 4]),
        ("transformer_layer_spec", None),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    dense.assert_nemo_refused("gemma2", field, value)


def test_no_soft_cap_is_none_on_both_sides() -> None:
    table = load_table("gemma2")
    config, _ = read_config(table.fields, CONFIG)
    written = table.nemo.write(config)[1]
    assert written["final_logit_softcapping"] is None
    assert written["attn_logit_softcapping"] == 50.0
    assert written["query_pre_attn_scalar"] == 12
    assert write_config(table.fields, config)["final_logit_softcapping"] is None


def test_a_nemo_model_without_a_window_has_no_config_json() -> None:
    table = load_table("gemma2")
    with pytest.raises(UnsupportedConfig, match="window_size=None"):
        write_config(table.fields, dense.read_nemo("gemma2", window_size=None))


def test_what_released_files_also_say_changes_nothing() -> None:
    more = {"cache_implementation": "hybrid", "sliding_window_size": 4096, "hidden_act": "gelu_pytorch_tanh"}
    fields = load_table("gemma2").fields
    assert read_config(fields, {**CONFIG, **more})[0] == read_config(fields, CONFIG)[0]
