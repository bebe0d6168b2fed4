"""Dense decoders: keys of config.json and fields of NeMo's configs that are refused, each by its name."""

from __future__ import annotations

import pytest

from . import dense

#: refused by every one of them
KEYS = [
    ("hidden_act", "tanh"),
    ("quantization_config", {}),
    ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
]
FIELDS = [
    ("multi_latent_attention", True),
    ("softmax_scale", 0.5),
    ("position_embedding_type", "yarn"),
    ("rotary_interleaved", True),
]
#: refused by one of them
OWN_KEYS: dict[str, list[tuple[str, object]]] = {
    "gemma": [("attention_bias", True), ("hidden_activation", "silu"), ("use_bidirectional_attention", True)],
    "mistral": [("layer_types", ["sliding_attention"])],
    "qwen2": [
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
    ],
    "qwen3": [
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("attention_bias", True),
    ],
    "phi3": [
        ("rope_scaling", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
        ("rope_scaling", {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}),
        ("attention_bias", True),
        ("partial_rotary_factor", 1.5),
    ],
    "starcoder2": [("use_bias", False), ("hidden_act", "gelu_new")],
    "nemotron": [("attention_bias", True), ("hidden_act", "silu"), ("partial_rotary_factor", 0.0)],
}
OWN_FIELDS: dict[str, list[tuple[str, object]]] = {
    "gemma": [
        ("num_moe_experts", 4),
        ("layernorm_zero_centered_gamma", False),
        ("add_qkv_bias", True),
        ("window_size", [4, 0]),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
    "mistral": [
        ("num_moe_experts", 4),
        ("window_size", [4, 4]),
        ("window_attn_skip_freq", 2),
        ("add_qkv_bias", True),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
    "qwen2": [
        ("add_qkv_bias", False),
        ("window_size", [4, 0]),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
    "qwen3": [
        ("add_qkv_bias", True),
        ("window_size", [4, 0]),
        ("qk_layernorm", False),
        ("add_bias_linear", True),
        ("rotary_percent", 0.5),
    ],
    "phi3": [
        ("num_moe_experts", 4),
        ("add_qkv_bias", True),
        ("window_size", [4, 4]),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
    ],
    "starcoder2": [
        ("num_moe_experts", 4),
        ("normalization", "RMSNorm"),
        ("gated_linear_unit", True),
        ("window_size", [4, 4]),
        ("activation_func", None),
        ("qk_layernorm", True),
        ("rotary_percent", 0.5),
    ],
    "nemotron": [
        ("num_moe_experts", 4),
        ("normalization", "RMSNorm"),
        ("gated_linear_unit", True),
        ("layernorm_zero_centered_gamma", False),
        ("window_size", [4, 0]),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
    ],
}


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [(name, *pair) for name, own in OWN_KEYS.items() for pair in (*KEYS, *own)],
)
def test_a_key_is_named(architecture: str, key: str, value: object) -> None:
    dense.assert_refused(architecture, key, value)


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [(name, *pair) for name, own in OWN_FIELDS.items() for pair in (*FIELDS, *own)],
)
def test_a_field_of_nemo_is_named(architecture: str, field: str, value: object) -> None:
    dense.assert_nemo_refused(architecture, field, value)
