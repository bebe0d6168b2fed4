"""Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder and what else is a ``Qwen3MoeForCausalLM``.

Source: transformers/models/qwen3_moe, megatron/core/transformer/moe, nemo/collections/llm/gpt/model/qwen3.py.
"""

from ..blocks import QK_MODULES, QK_NORMS, TIED
from ..hf.fields import Dtype, Field, Fixed, FullAttention, HeadDim
from ..hf.fields_moe import Aliased, EveryLayerSparse, NormTopk
from ..hf.rope import Rope
from ..nemo2.configs_moe import QWEN3_MOE_DEFAULTS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses, with_rules
from ..nemo2.fields_moe import MOE_DECODER
from ..rules_moe import AFTER, BEFORE, EXPERT_NORM, MODULES, experts, moe_sizes, router
from ..table import Table

EXPERT = "mlp.experts.{expert}."

TABLE = Table(
    architecture="qwen3_moe",
    hf_class="Qwen3MoeForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.qwen3",
        model="Qwen3Model",
        config="Qwen3MoEConfig",
        defaults=QWEN3_MOE_DEFAULTS,
        rules=with_rules(MOE_DECODER, NemoFixed("qk_layernorm", True, written=True)),
        marks=(("num_moe_experts", True),),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 24),
        Field("hidden_size", "hidden_size", 2048),
        Field("intermediate_size", "ffn_hidden_size", 6144),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 4),
        HeadDim(),
        Field("vocab_size", "vocab_size", 151936),
        Field("max_position_embeddings", "seq_length", 32768),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 768),
        Aliased(("num_experts", "num_local_experts"), "num_moe_experts", 128),
        Field("num_experts_per_tok", "moe_router_topk", 8),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        NormTopk(),
        EveryLayerSparse(),
        FullAttention(),
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", False),
        Rope(),
        Dtype(),
    ),
    rules=(
        *BEFORE,
        *QK_NORMS,
        EXPERT_NORM,
        router("mlp.gate.weight"),
        *experts(*(EXPERT + f"{name}_proj.weight" for name in ("gate", "up", "down"))),
        *AFTER,
    ),
    modules=(*MODULES, *QK_MODULES),
    sizes=moe_sizes,
    tied=TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits"),
)
