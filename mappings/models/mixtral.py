"""Mixtral 8x7B, 8x22B and what else is a ``MixtralForCausalLM``.

Source: transformers/models/mixtral, megatron/core/transformer/moe, nemo/collections/llm/gpt/model/mixtral.py.
"""

from ..blocks import TIED
from ..hf.fields import Dtype, Field, Fixed, HeadDim
from ..hf.rope import Rope
from ..nemo2.configs_moe import MIXTRAL_DEFAULTS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses, with_rules
from ..nemo2.fields_moe import MOE_DECODER, Repeated
from ..rules_moe import AFTER, BEFORE, EXPERT_NORM, MODULES, experts, moe_sizes, router
from ..table import Table

EXPERT = "block_sparse_moe.experts.{expert}."

TABLE = Table(
    architecture="mixtral",
    hf_class="MixtralForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.mixtral",
        model="MixtralModel",
        config="MixtralConfig",
        defaults=MIXTRAL_DEFAULTS,
        rules=with_rules(
            MOE_DECODER,
            Repeated("moe_ffn_hidden_size", "ffn_hidden_size"),
            NemoFixed("moe_router_pre_softmax", False, written=True),
        ),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 14336),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "seq_length", 131072),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("num_local_experts", "num_moe_experts", 8),
        Field("num_experts_per_tok", "moe_router_topk", 2),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        Fixed("hidden_act", "silu"),
        Fixed("sliding_window", None),
        Rope(1000000.0),
        Dtype(),
    ),
    rules=(
        *BEFORE,
        EXPERT_NORM,
        router("block_sparse_moe.gate.weight"),
        *experts(EXPERT + "w1.weight", EXPERT + "w3.weight", EXPERT + "w2.weight"),
        *AFTER,
    ),
    modules=MODULES,
    sizes=moe_sizes,
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import",
        "real NeMo export (of float32: NeMo's exporter fails on other dtypes)",
    ),
)
