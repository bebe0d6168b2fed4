"""Nemotron: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.mappings import load_table
from nemoconv.mappings.config_fields import read_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("nemotron", head_dim=16)


class TestNemotron(MappingTests):
    config = CONFIG


class TestNemotronTied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("nemotron", "NemotronConfig")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "tanh"),
        ("quantization_config", {}),
        ("mlp_bias", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("attention_bias", True),
        ("hidden_act", "silu"),
        ("partial_rotary_factor", 0.0),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    dense.assert_refused("nemotron", key, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("multi_latent_attention", True),
        ("num_moe_experts", 4),
        ("softmax_scale", 0.5),
        ("position_embedding_type", "yarn"),
        ("rotary_interleaved", True),
        ("normalization", "RMSNorm"),
        ("gated_linear_unit", True),
        ("layernorm_zero_centered_gamma", False),
        ("window_size", [4, 0]),
        ("add_bias_linear", True),
        ("qk_layernorm", True),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    dense.assert_nemo_refused("nemotron", field, value)


def test_what_released_files_also_say_changes_nothing() -> None:
    more = {"kv_channels": 128}
    fields = load_table("nemotron").fields
    assert read_config(fields, {**CONFIG, **more})[0] == read_config(fields, CONFIG)[0]
