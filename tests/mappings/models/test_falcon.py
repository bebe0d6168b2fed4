"""Falcon: which of its layers NeMo 1 has, and what config.json says of them."""

from __future__ import annotations

from typing import Any

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config, write_config

from .dense import assert_defaults_of_transformers

FIELDS = load_table("falcon").fields
LEAST: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}


@pytest.mark.parametrize(
    ("given", "two", "parallel", "groups"),
    [
        ({}, False, True, 1),  # 7B
        (NEW, True, True, 2),  # 40B, 180B
        ({**NEW, "num_ln_in_parallel_attn": 2}, True, True, 2),
        ({**NEW, "num_ln_in_parallel_attn": 1}, False, True, 2),  # 11B
        ({"multi_query": False}, False, True, 8),
        ({"parallel_attn": False, "multi_query": False, "bias": True}, False, False, 8),
        ({"parallel_attn": False}, False, False, 1),
    ],
)
def test_the_kinds_of_layers(given: dict[str, Any], two: bool, parallel: bool, groups: int) -> None:
    config, _ = read_config(FIELDS, {**LEAST, **given})
    assert config["new_decoder_architecture"] is two
    assert config["parallel_attention"] is parallel
    assert config["num_query_groups"] == groups
    assert config["ffn_hidden_size"] == 256
    again, _ = read_config(FIELDS, write_config(FIELDS, config))
    assert again == config


@pytest.mark.parametrize(
    "given",
    [{}, NEW, {"new_decoder_architecture": True}, {"multi_query": False}, {"num_ln_in_parallel_attn": 1}],
)
def test_transformers_means_the_same(given: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.FalconConfig(**LEAST, **given).to_dict()
    assert read_config(FIELDS, theirs)[0] == read_config(FIELDS, {**LEAST, **given})[0]


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    assert_defaults_of_transformers("falcon", "FalconConfig")


@pytest.mark.parametrize("two", [True, False])
def test_transformers_reads_what_is_written(two: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config, _ = read_config(FIELDS, {**LEAST, **NEW, "num_ln_in_parallel_attn": 2 if two else 1})
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**write_config(FIELDS, config)))
    layer = model.transformer.h[0]
    assert hasattr(layer, "ln_attn") is two
    assert hasattr(layer, "input_layernorm") is not two
    assert layer.self_attention.query_key_value.weight.shape == ((8 + 2 * 2) * 8, 64)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"alibi": True}, "alibi"),
        ({"bias": True}, "biases"),
        ({**NEW, "parallel_attn": False}, "do not go together"),
        ({"num_ln_in_parallel_attn": 2}, "do not go together"),
        ({**NEW, "num_ln_in_parallel_attn": 3}, "do not go together"),
        ({**NEW, "num_kv_heads": 3}, "num_kv_heads=3"),
        ({"multi_query": False, "num_kv_heads": 2}, "num_kv_heads=2"),
        ({"activation": "relu"}, "activation"),
        ({"activation": "gelu_new"}, "exact GELU"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({"num_kv_heads": True, "new_decoder_architecture": True}, "num_kv_heads"),
    ],
)
def test_what_is_refused_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedConfig, match=says):
        read_config(FIELDS, {**LEAST, **given})


def test_groups_of_layers_that_do_not_run_side_by_side_are_refused() -> None:
    config, _ = read_config(FIELDS, {**LEAST, "parallel_attn": False})
    with pytest.raises(UnsupportedConfig, match="num_query_groups=2"):
        write_config(FIELDS, {**config, "num_query_groups": 2})
