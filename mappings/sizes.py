"""Sizes of the factors that rules name, from a model config."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedConfig
from .hf.fields import Value


def attention_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors that decoder-only tables use, from a model config.

    Raises UnsupportedConfig when the heads do not divide into the query groups.
    """
    return {**base_sizes(config), **heads_sizes(config), "ffn": config["ffn_hidden_size"], "half": 2}


def base_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes that every decoder has: layers, width, vocabulary."""
    return {
        "layers": config["num_layers"],
        "hidden": config["hidden_size"],
        "vocab": config["vocab_size"],
        "true_vocab": config["vocab_size"],
    }


def heads_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of heads and of their groups.

    Raises UnsupportedConfig when the heads do not divide into the query groups.
    """
    heads, groups = config["num_attention_heads"], config["num_query_groups"]
    if heads % groups:
        raise UnsupportedConfig(f"num_attention_heads={heads} is not a multiple of num_query_groups={groups}")
    return {
        "group": groups,
        "heads_per_group": heads // groups,
        "value_head": heads // groups + 1,
        "head": heads // groups + 2,
        "query_head": heads // groups,
        "head_dim": config["kv_channels"],
        # runs of rows of q, k and v where Hugging Face keeps them in one tensor
        "q_rows": heads * config["kv_channels"],
        "k_rows": groups * config["kv_channels"],
        "v_first": (heads + groups) * config["kv_channels"],
        "qkv_rows": (heads + 2 * groups) * config["kv_channels"],
    }
