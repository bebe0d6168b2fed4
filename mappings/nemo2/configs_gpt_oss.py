"""What NeMo's GPTOSSConfig takes for fields that are not set: data only, read off nemo-toolkit 2.7.3.

Some of it is not what the released models compute: a window of 129 tokens instead of 128, and no stretching
of attention by YaRN. A config that leaves those out means it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ...formats.text.fiddle import Symbol
from .configs_moe import config_class

QUICK_GELU: Final = Symbol("megatron.core.activations", "quick_gelu")
_GPT_OSS: Final = config_class(
    num_attention_heads=64,
    hidden_size=2880,
    num_query_groups=8,
    ffn_hidden_size=2880,
    kv_channels=64,
    add_bias_linear=True,
    vocab_size=201088,
    position_embedding_type="yarn",
    rotary_base=150000,
    yarn_rotary_scaling_factor=32.0,
    yarn_original_max_position_embeddings=4096,
    yarn_beta_fast=32.0,
    yarn_beta_slow=1.0,
    yarn_correction_range_round_to_int=False,
    yarn_mscale=1.0,
    yarn_mscale_all_dim=1.0,
    moe_router_topk=4,
    moe_ffn_hidden_size=2880,
    moe_router_load_balancing_type="none",
    seq_length=131072,
    window_size=(128, 0),
    window_attn_skip_freq=2,
    softmax_type="learnable",
    activation_func=QUICK_GELU,
    glu_linear_offset=1.0,
    activation_func_clamp_value=7.0,
)
GPT_OSS_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "GPTOSSConfig": _GPT_OSS,
        "GPTOSSConfig120B": config_class(_GPT_OSS, num_layers=36, num_moe_experts=128),
        "GPTOSSConfig20B": config_class(_GPT_OSS, num_layers=24, num_moe_experts=32),
    }
)
