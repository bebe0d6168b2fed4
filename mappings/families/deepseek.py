"""What DeepSeek V2 and V3 and GLM-4.7-Flash share: latent attention, shared experts, dense layers first.

megatron-core's norms of latents take ``rms_norm_eps``, transformers' always 1e-6: the released DeepSeek
models say 1e-6, and where a model says 1e-5 logits of random weights differ by 1e-4.

Source: transformers/models/deepseek_v3, megatron/core/transformer/multi_latent_attention.py,
nemo/collections/llm/gpt/model/deepseek.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ..architecture import Architecture
from ..blocks.attention import Latent
from ..blocks.mlp import Mixture
from ..blocks.mtp import Mtp
from ..blocks.stack import Blocks
from ..hf.fields import ConfigRule, Field, Fixed, OneOf, Unread, Value
from ..hf.fields_moe import KeyHeads, ReleasedCode
from ..llama_like import llama_like
from ..nemo2 import classes
from ..nemo2.entry import Nemo2

EXPERTS: Final = {
    "router": "mlp.gate",
    **{f"expert_{role}": f"mlp.experts.{{expert}}.{role}_proj" for role in ("gate", "up", "down")},
}
SHARED: Final = {f"shared_{role}": f"mlp.shared_experts.{role}_proj" for role in ("gate", "up", "down")}
CORRECTION: Final = {"correction": "mlp.gate.e_score_correction_bias"}
NAMES: Final = {
    "query_down": "self_attn.q_a_proj",
    "query_down_norm": "self_attn.q_a_layernorm",
    "query_up": "self_attn.q_b_proj",
    "latent_down": "self_attn.kv_a_proj_with_mqa",
    "latent_norm": "self_attn.kv_a_layernorm",
    "latent_up": "self_attn.kv_b_proj",
    **EXPERTS,
    **SHARED,
}

#: NeMo's; a megatron-core before 0.14 calls this length max_position_embeddings: not set, it may be either
CLASSES: Final = classes.family("DeepSeekConfig", original_max_position_embeddings=None)


def dense_first(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    """The layers without experts, and those with, of a model whose first layers have none."""
    dense, layers = config["first_k_dense_replace"], config["num_layers"]
    return {"dense": frozenset(range(dense)), "sparse": frozenset(range(dense, layers))}


def deepseek_like(
    model_types: str | tuple[str, ...],
    hf_class: str,
    *own: ConfigRule,
    mixture: Mixture,
    names: Mapping[str, str] = MappingProxyType({}),
    widths: tuple[int, int, int] = (128, 64, 128),
    defaults: Mapping[str, Value],
    nemo2: Nemo2,
    scoring: str,
    mtp: Mtp | None = None,
    **more: Any,
) -> Architecture:
    """A DeepSeek. ``own`` rules for config.json say how its router chooses, and what differs; ``names`` are
    beside those of attention and experts, ``widths`` defaults of what is not rotated of a head, what is, and
    its value, ``scoring`` is what ``scoring_func`` has to be."""
    plain, turned, value = widths
    config: tuple[ConfigRule, ...] = (
        KeyHeads(),
        Field("kv_lora_rank", "kv_lora_rank", 512),
        Field("qk_nope_head_dim", "qk_head_dim", plain),
        Field("qk_rope_head_dim", "qk_pos_emb_head_dim", turned),
        Field("v_head_dim", "v_head_dim", value),
        Field("aux_loss_alpha", "moe_aux_loss_coeff", 0.001, kind=float),
        *own,
        OneOf("scoring_func", (scoring,)),
        Fixed("moe_layer_freq", 1),
        # sizes that transformers works out itself, and training
        Unread(("head_dim", "qk_head_dim", "ep_size", "seq_aux")),
    )
    return llama_like(
        model_types,
        hf_class,
        names={**NAMES, **names},
        blocks=Blocks(attention=Latent(), mixture=mixture, mtp=mtp, neighbours=True),
        defaults=defaults,
        config=config,
        nemo2=nemo2,
        ignored=(),
        **more,
    )


def released_code(name: str) -> ReleasedCode:
    """The classes that came with the models, and with those of others that took them over."""
    model = (f"modeling_deepseek.{name}{kind}" for kind in ("Model", "ForCausalLM"))
    return ReleasedCode(frozenset({f"configuration_deepseek.{name}Config", *model}))
