"""gpt-oss 20B and 120B: attention sinks, windows on every second layer, experts with biases.

config.json may say that the experts are in MXFP4: they are decoded as they are read. Plain ones are stored
[experts, in, out] with gate and up alternating.

Source: transformers/models/gpt_oss, megatron/core/transformer/dot_product_attention.py and moe/experts.py,
nemo/collections/llm/gpt/model/gpt_oss.py (NeMo 2.6 and newer).
"""

from ..blocks import HF, NEMO, QKV_BIAS, TIED
from ..rules import same
from ..rules_moe import AFTER, BEFORE, EXPERT_NORM, MODULES, moe_sizes, router, stacked_experts
from ..table import Table
from . import gpt_oss_fields

ATTENTION = "self_attention."

TABLE = Table(
    architecture="gpt_oss",
    hf_class="GptOssForCausalLM",
    nemo=gpt_oss_fields.CLASSES,
    fields=gpt_oss_fields.FIELDS,
    rules=(
        *BEFORE,
        QKV_BIAS,
        same(NEMO + ATTENTION + "linear_proj.bias", HF + "self_attn.o_proj.bias", "hidden"),
        same(
            NEMO + ATTENTION + "core_attention.softmax_offset",
            HF + "self_attn.sinks",
            "(group query_head)",
            cut="group",
        ),
        EXPERT_NORM,
        router("mlp.router.weight"),
        same(NEMO + "mlp.router.bias", HF + "mlp.router.bias", "experts"),
        *stacked_experts("mlp.experts.", "moe_ffn half", biases=True),
        *AFTER,
    ),
    modules=MODULES,
    sizes=moe_sizes,
    whole_experts=True,
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "transformers' own MXFP4 decoding",
    ),
)
