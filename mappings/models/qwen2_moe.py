"""Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B and what else is a ``Qwen2MoeForCausalLM``.

Source: transformers/models/qwen2_moe, megatron/core/transformer/moe. NeMo has no class of its own for it:
its ``Qwen2Config`` builds the model when the fields of experts are set. The gate of the shared expert
needs megatron-core 0.16: NeMo with 0.14 drops the field and computes without the gate.
"""

from ..blocks.attention import Attention
from ..blocks.mlp import Mixture
from ..blocks.place import There
from ..blocks.stack import Blocks
from ..families.deepseek import EXPERTS
from ..hf.fields import Field, FullAttention
from ..hf.fields_moe import EveryLayerSparse, NormTopk
from ..llama_like import llama_like
from ..nemo2.entry import Nemo2
from ..nemo2.fields import Count, NemoFixed

QWEN2_MOE = llama_like(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    names={
        **EXPERTS,
        **{f"shared_{role}": f"mlp.shared_expert.{role}_proj" for role in ("gate", "up", "down")},
        "shared_scale": "mlp.shared_expert_gate",
    },
    blocks=Blocks(attention=Attention(bias=There((("add_qkv_bias", True),))), mixture=Mixture()),
    defaults={
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
    config=(
        Field("qkv_bias", "add_qkv_bias", True, kind=bool),
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 1408),
        Field("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", 5632),
        Field("num_experts", "num_moe_experts", 60),
        Field("num_experts_per_tok", "moe_router_topk", 4),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        NormTopk(),
        EveryLayerSparse(),
        FullAttention(),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.qwen2",
        "Qwen2Model",
        "Qwen2Config",
        (
            Count("moe_shared_expert_intermediate_size"),
            NemoFixed("moe_shared_expert_gate", True, written=True),
        ),
    ),
    proofs=("bit-equal", "transformers logits", "megatron-core logits (0.16; 0.14 has no gate)"),
)
