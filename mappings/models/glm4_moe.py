"""GLM-4.5, GLM-4.5-Air, GLM-4.6 and what else is a ``Glm4MoeForCausalLM``.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/glm4_moe, megatron/core/transformer/moe, nemo/collections/llm/gpt/model/base.py.
"""

from dataclasses import replace

from ..blocks import FC2, GATED_FC1, HF, QK_MODULES, QK_NORMS, QKV_BIAS, TIED, mlp_norm
from ..families.deepseek import EXPERT, layer_sets
from ..mtp import COPIES, further_modules, further_rules
from ..rules_moe import (
    AFTER,
    BEFORE,
    EXPERT_NORM,
    experts,
    moe_sizes,
    router,
    shared_experts,
    shared_modules,
    sparse_modules,
)
from ..table import Table
from . import glm4_moe_fields
from .deepseek_v3 import CORRECTION

RULES = (
    *BEFORE,
    replace(QKV_BIAS, when=(("add_qkv_bias", True),)),
    *(replace(rule, when=(("qk_layernorm", True),)) for rule in QK_NORMS),
    *(replace(rule, layers="dense") for rule in (mlp_norm(), GATED_FC1, FC2)),
    replace(EXPERT_NORM, layers="sparse", also=()),
    router("mlp.gate.weight", layers="sparse"),
    CORRECTION,
    *experts(*(EXPERT + f"{name}_proj.weight" for name in ("gate", "up", "down")), layers="sparse"),
    *shared_experts("mlp.shared_experts", layers="sparse"),
    *AFTER,
)
MODULES = (
    *sparse_modules(),
    *shared_modules(),
    *(replace(module, when=(("qk_layernorm", True),)) for module in QK_MODULES),
)

TABLE = Table(
    architecture="glm4_moe",
    hf_class="Glm4MoeForCausalLM",
    nemo=glm4_moe_fields.CLASSES,
    fields=glm4_moe_fields.FIELDS,
    rules=(*RULES, *further_rules(RULES, "sparse")),
    modules=(*MODULES, *further_modules(MODULES, "sparse")),
    sizes=moe_sizes,
    layer_sets=layer_sets,
    further=HF,
    copies=COPIES,
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "both for further tokens",
        "real NeMo load",
    ),
)
