"""What the config classes of NeMo 2's mixtures of experts take for fields that are not set: data only.

Read off nemo-toolkit 2.5.3 with megatron-core 0.14.0. ``OFF`` and ``INERT`` of
:mod:`nemoconv.mappings.nemo2.configs` say the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ...formats.text.fiddle import Symbol

# GPTConfig on top of megatron-core's TransformerConfig, with what all classes below change alike
_GPT: Mapping[str, object] = MappingProxyType(
    {
        "num_layers": 0,
        "hidden_size": 0,
        "ffn_hidden_size": None,
        "num_attention_heads": 0,
        "num_query_groups": None,
        "kv_channels": None,
        "vocab_size": None,
        "make_vocab_size_divisible_by": 128,
        "seq_length": 4096,
        "max_position_embeddings": None,
        "position_embedding_type": "rope",
        "rotary_base": 1000000.0,
        "rotary_percent": 1.0,
        "seq_len_interpolation_factor": None,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-05,
        "activation_func": Symbol("torch.nn.functional", "silu"),
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "share_embeddings_and_output_weights": False,
        "init_method_std": 0.02,
        "attention_dropout": 0.0,
        "bf16": False,
        "fp16": False,
        "params_dtype": Symbol("torch", "float32"),
        "generation_config": None,
        "num_moe_experts": None,
        "moe_ffn_hidden_size": None,
        "moe_router_topk": 2,
        "moe_router_pre_softmax": False,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.0,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "moe_router_num_groups": None,
        "moe_router_group_topk": None,
        "moe_router_topk_scaling_factor": None,
        "moe_shared_expert_intermediate_size": None,
        "moe_shared_expert_gate": False,
        "moe_layer_freq": 1,
    }
)
BF16: Final = {"bf16": True, "params_dtype": Symbol("torch", "bfloat16")}


def config_class(*parents: Mapping[str, object], **changes: object) -> Mapping[str, object]:
    """The defaults of a class that changes those of its parents."""
    merged: dict[str, object] = dict(_GPT)
    for parent in parents:
        merged |= parent
    return MappingProxyType(merged | changes)


_MIXTRAL = config_class(
    BF16,
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=8,
    ffn_hidden_size=14336,
    max_position_embeddings=4096,
    num_moe_experts=8,
    moe_aux_loss_coeff=0.01,
)

MIXTRAL_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "MixtralConfig": _MIXTRAL,
        "MixtralConfig8x3B": config_class(_MIXTRAL, hidden_size=2560, ffn_hidden_size=8960),
        "MixtralConfig8x7B": _MIXTRAL,
        "MixtralConfig8x22B": config_class(
            _MIXTRAL, num_layers=56, hidden_size=6144, num_attention_heads=48, ffn_hidden_size=16384
        ),
    }
)

# NeMo has no class for Qwen2-MoE; Qwen2Config has all the fields.
_QWEN2 = config_class(layernorm_epsilon=1e-06, add_qkv_bias=True, vocab_size=151936)
QWEN2_MOE_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType({"Qwen2Config": _QWEN2})

_QWEN3_MOE = config_class(
    _QWEN2,
    add_qkv_bias=False,
    qk_layernorm=True,
    kv_channels=128,
    num_query_groups=8,
    max_position_embeddings=40960,
    num_moe_experts=128,
    moe_router_topk=8,
    moe_aux_loss_coeff=0.001,
)
QWEN3_MOE_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "Qwen3MoEConfig": _QWEN3_MOE,
        "Qwen3Config30B_A3B": config_class(
            _QWEN3_MOE,
            num_layers=48,
            hidden_size=2048,
            num_attention_heads=32,
            num_query_groups=4,
            ffn_hidden_size=6144,
            moe_ffn_hidden_size=768,
        ),
        "Qwen3Config235B_A22B": config_class(
            _QWEN3_MOE,
            num_layers=94,
            hidden_size=4096,
            num_attention_heads=64,
            num_query_groups=4,
            ffn_hidden_size=12288,
            moe_ffn_hidden_size=1536,
        ),
    }
)

_DEEPSEEK = config_class(
    BF16,
    num_attention_heads=128,
    kv_channels=128,
    max_position_embeddings=4096,
    rotary_base=10000.0,
    make_vocab_size_divisible_by=3200,
    qk_layernorm=True,
    multi_latent_attention=True,
    init_method_std=0.006,
    layernorm_epsilon=1e-06,
    moe_router_pre_softmax=True,
    moe_router_load_balancing_type="seq_aux_loss",
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_head_dim=128,
    qk_pos_emb_head_dim=64,
    v_head_dim=128,
    rope_type="yarn",
    rotary_scaling_factor=40,
    original_max_position_embeddings=None,
    beta_fast=32,
    beta_slow=1,
    mscale=1.0,
    mscale_all_dim=1.0,
)
_DEEPSEEK_V2 = config_class(
    _DEEPSEEK,
    num_layers=60,
    hidden_size=5120,
    ffn_hidden_size=12288,
    num_moe_experts=160,
    moe_ffn_hidden_size=1536,
    moe_shared_expert_intermediate_size=3072,
    moe_layer_freq=(0, *(1,) * 59),
    moe_router_topk=6,
    moe_router_num_groups=8,
    moe_router_group_topk=3,
    moe_router_topk_scaling_factor=16.0,
    moe_aux_loss_coeff=0.001,
    mscale=0.707,
    mscale_all_dim=0.707,
)
DEEPSEEK_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "DeepSeekConfig": _DEEPSEEK,
        "DeepSeekV2Config": _DEEPSEEK_V2,
        "DeepSeekV2LiteConfig": config_class(
            _DEEPSEEK_V2,
            num_layers=27,
            hidden_size=2048,
            ffn_hidden_size=10944,
            num_attention_heads=16,
            kv_channels=16,
            q_lora_rank=None,
            num_moe_experts=64,
            moe_ffn_hidden_size=1408,
            moe_shared_expert_intermediate_size=2816,
            moe_layer_freq=(0, *(1,) * 26),
            moe_router_num_groups=1,
            moe_router_group_topk=1,
            moe_router_topk_scaling_factor=1.0,
        ),
        "DeepSeekV3Config": config_class(
            _DEEPSEEK,
            num_layers=61,
            hidden_size=7168,
            ffn_hidden_size=18432,
            num_moe_experts=256,
            moe_ffn_hidden_size=2048,
            moe_shared_expert_intermediate_size=2048,
            moe_layer_freq=(0, 0, 0, *(1,) * 58),
            moe_router_topk=8,
            moe_router_num_groups=8,
            moe_router_group_topk=4,
            moe_router_topk_scaling_factor=2.5,
            moe_aux_loss_coeff=0.0001,
            make_vocab_size_divisible_by=1280,
            moe_router_score_function="sigmoid",
            moe_router_enable_expert_bias=True,
        ),
    }
)
