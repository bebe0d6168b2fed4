"""Gemma 3: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config(
    "gemma3_text", head_dim=16, sliding_window=20, query_pre_attn_scalar=12, sliding_window_pattern=2
)


class TestGemma3(MappingTests):
    config = CONFIG


class TestGemma3Untied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": False}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("gemma3_text", "Gemma3TextConfig")


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
        ("attn_logit_softcapping", 50.0),
        ("rope_parameters", {"rope_type": "default"}),
        ("sliding_window", None),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    dense.assert_refused("gemma3_text", key, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("multi_latent_attention", True),
        ("num_moe_experts", 4),
        ("softmax_scale", 0.3),
        ("position_embedding_type", "yarn"),
        ("rotary_interleaved", True),
        ("layernorm_zero_centered_gamma", False),
        ("add_qkv_bias", True),
        ("window_size", [4, 4]),
        ("interleaved_attn_pattern", [5, 2]),
        ("seq_len_interpolation_factor", 2.0),
        ("is_vision_language", True),
        ("transformer_layer_spec", None),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    dense.assert_nemo_refused("gemma3_text", field, value)


@pytest.mark.parametrize(
    "rope",
    [
        {
            "rope_theta": 9000.0,
            "rope_local_base_freq": 700.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8},
        },
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            }
        },
    ],
)
def test_two_rotary_embeddings_in_the_words_of_both_generations(rope: dict[str, object]) -> None:
    table = load_table("gemma3_text")
    plain = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    config, _ = read_config(table.fields, {**plain, **rope})
    written = table.nemo.write(config)[1]
    assert written["rotary_base"] == (700.0, 9000.0)
    assert written["rope_scaling_factor"] == 8.0
    assert written["window_size"] == 19
    assert written["interleaved_attn_pattern"] == (1, 1)
    assert abs(written["softmax_scale"] - 12**-0.5) < 1e-12
    assert read_config(table.fields, write_config(table.fields, config))[0] == config


def test_nemo_classes_are_read() -> None:
    config = dense.read_nemo("gemma3_text", softmax_scale=168**-0.5)
    assert (config["query_pre_attn_scalar"], config["sliding_window"], config["window_pattern"]) == (
        168,
        513,
        6,
    )
    assert dense.read_nemo("gemma3_text")["query_pre_attn_scalar"] == 256
