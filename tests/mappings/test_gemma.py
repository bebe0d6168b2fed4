"""Gemma: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("gemma", head_dim=16, hidden_act="gelu", hidden_activation=None)


class TestGemma(MappingTests):
    config = CONFIG


class TestGemmaUntied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": False}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("gemma", "GemmaConfig")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "tanh"),
        ("quantization_config", {}),
        ("mlp_bias", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("attention_bias", True),
        ("hidden_activation", "silu"),
        ("use_bidirectional_attention", True),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    dense.assert_refused("gemma", key, value)


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
        ("window_size", [4, 0]),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    dense.assert_nemo_refused("gemma", field, value)
