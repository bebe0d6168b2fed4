"""What NeMo's classes of Llama 4 take for fields that are not set: data only, read off nemo-toolkit 2.5.3."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ...formats.text.fiddle import Symbol
from .configs_moe import config_class

_LLAMA4 = config_class(
    num_layers=48,
    hidden_size=5120,
    ffn_hidden_size=16384,
    num_attention_heads=40,
    num_query_groups=8,
    vocab_size=202048,
    seq_length=8192,
    rotary_base=500_000,
    rotary_interleaved=True,
    init_method_std=0.01,
    nope_layer_interval=4,
    moe_shared_expert_intermediate_size=8192,
    moe_ffn_hidden_size=8192,
    moe_router_topk=1,
    moe_router_score_function="sigmoid",
    moe_apply_probs_on_input=True,
    qk_l2_norm=True,
    rope_scaling=True,
    rope_scaling_factor=8.0,
    attention_chunk_size=8192,
)
LLAMA4_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "Llama4Config": _LLAMA4,
        "Llama4Experts16Config": config_class(_LLAMA4, num_moe_experts=16),
        "Llama4Experts128Config": config_class(
            _LLAMA4, num_moe_experts=128, rope_scaling=False, moe_layer_freq=(0, 1) * 24, qk_l2_norm=False
        ),
    }
)
SPEC: Final = Symbol("nemo.collections.llm.gpt.model.llama4_utils", "get_llama4_layer_spec")
