"""Qwen 3: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("qwen3", head_dim=16)


class TestQwen3(MappingTests):
    config = CONFIG


class TestQwen3Tied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("qwen3", "Qwen3Config")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "tanh"),
        ("quantization_config", {}),
        ("mlp_bias", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("attention_bias", True),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    dense.assert_refused("qwen3", key, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("multi_latent_attention", True),
        ("softmax_scale", 0.5),
        ("position_embedding_type", "yarn"),
        ("rotary_interleaved", True),
        ("add_qkv_bias", True),
        ("window_size", [4, 0]),
        ("qk_layernorm", False),
        ("add_bias_linear", True),
        ("rotary_percent", 0.5),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    dense.assert_nemo_refused("qwen3", field, value)


def test_the_longest_text_is_what_nemo_exports() -> None:
    assert dense.read_nemo("qwen3")["seq_length"] == 40960
    assert dense.read_nemo("qwen3", seq_length=8, max_position_embeddings=77)["seq_length"] == 77
