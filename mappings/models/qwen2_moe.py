"""Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B and what else is a ``Qwen2MoeForCausalLM``.

Source: transformers/models/qwen2_moe, megatron/core/transformer/moe. NeMo has no class of its own for it:
its ``Qwen2Config`` builds the model when the fields of experts are set. The gate of the shared expert
needs megatron-core 0.16: NeMo with 0.14 drops the field and computes without the gate.
"""

from dataclasses import replace

from ..blocks import HF, NEMO, QKV_BIAS, TIED
from ..hf.fields import Dtype, Field, Fixed, FullAttention, HeadDim
from ..hf.fields_moe import EveryLayerSparse, NormTopk
from ..hf.rope import Rope
from ..nemo2.configs_moe import QWEN2_MOE_DEFAULTS
from ..nemo2.fields import Count, NemoClasses, Same, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields_moe import MOE_DECODER
from ..rules import same
from ..rules_moe import AFTER, BEFORE, EXPERT_NORM, MODULES, experts, moe_sizes, router, shared_experts
from ..table import Module, Table

EXPERT = "mlp.experts.{expert}."

TABLE = Table(
    architecture="qwen2_moe",
    hf_class="Qwen2MoeForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.qwen2",
        model="Qwen2Model",
        config="Qwen2Config",
        defaults=QWEN2_MOE_DEFAULTS,
        rules=with_rules(
            MOE_DECODER,
            Same("add_qkv_bias"),
            Count("moe_shared_expert_intermediate_size"),
            NemoFixed("moe_shared_expert_gate", True, written=True),
        ),
        marks=(("num_moe_experts", True),),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 24),
        Field("hidden_size", "hidden_size", 2048),
        Field("intermediate_size", "ffn_hidden_size", 5632),
        Field("num_attention_heads", "num_attention_heads", 16),
        Field("num_key_value_heads", "num_query_groups", 16, default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 151936),
        Field("max_position_embeddings", "seq_length", 32768),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("qkv_bias", "add_qkv_bias", True, kind=bool),
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 1408),
        Field("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", 5632),
        Field("num_experts", "num_moe_experts", 60),
        Field("num_experts_per_tok", "moe_router_topk", 4),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        NormTopk(),
        EveryLayerSparse(),
        FullAttention(),
        Fixed("hidden_act", "silu"),
        Rope(),
        Dtype(),
    ),
    rules=(
        *BEFORE,
        replace(QKV_BIAS, when=(("add_qkv_bias", True),)),
        EXPERT_NORM,
        router("mlp.gate.weight"),
        *experts(*(EXPERT + f"{name}_proj.weight" for name in ("gate", "up", "down"))),
        *shared_experts("mlp.shared_expert"),
        same(NEMO + "mlp.shared_experts.gate_weight", HF + "mlp.shared_expert_gate.weight", "one hidden"),
        *AFTER,
    ),
    modules=(
        *MODULES,
        Module(NEMO + "mlp.shared_experts.linear_fc1"),
        Module(NEMO + "mlp.shared_experts.linear_fc2"),
    ),
    sizes=moe_sizes,
    tied=TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits (0.16; 0.14 has no gate)"),
)
