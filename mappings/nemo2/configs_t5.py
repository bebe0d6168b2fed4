"""Defaults of NeMo 2's config classes of T5: data only.

Read off the dataclasses of nemo-toolkit 2.5.3 (``nemo/collections/llm/t5/model/t5.py``) on top of
megatron-core 0.14.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...formats.text.fiddle import Symbol
from .configs_dense import GELU, Defaults, family

_T5 = family(
    num_layers=0,
    encoder_num_layers=None,
    hidden_size=0,
    ffn_hidden_size=None,
    num_attention_heads=0,
    num_query_groups=None,
    kv_channels=None,
    vocab_size=None,
    make_vocab_size_divisible_by=128,
    seq_length=512,
    seq_length_dec=128,
    max_position_embeddings=512,
    position_embedding_type="learned_absolute",
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    rotary_percent=1.0,
    seq_len_interpolation_factor=None,
    normalization="LayerNorm",
    layernorm_epsilon=1e-05,
    layernorm_zero_centered_gamma=False,
    activation_func=GELU,
    bias_activation_fusion=True,
    gated_linear_unit=False,
    add_bias_linear=True,
    add_qkv_bias=False,
    qk_layernorm=False,
    softmax_scale=None,
    share_embeddings_and_output_weights=True,
    init_method_std=0.02,
    attention_dropout=0.1,
    hidden_dropout=0.1,
    bf16=False,
    fp16=False,
    params_dtype=Symbol("torch", "float32"),
)


def _sized(layers: int, hidden: int, ffn: int, heads: int) -> Defaults:
    return family(
        _T5,
        num_layers=layers,
        encoder_num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
    )


T5_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    T5Config=_T5,
    T5Config220M=_sized(12, 768, 3072, 12),
    T5Config3B=_sized(24, 2048, 5120, 32),
    T5Config11B=_sized(24, 4096, 10240, 64),
)  # type: ignore[assignment]
