"""GLM-4.7-Flash and what else is a ``Glm4MoeLiteForCausalLM``: DeepSeek V3's layers under other defaults.

NeMo 2 has no class for it: its ``DeepSeekV3Config`` builds the same layers. Its norms of latents take
``rms_norm_eps`` (as vLLM's do), where transformers always takes 1e-6: at the released 1e-5 logits of random
weights differ by 1e-4, at 1e-6 they do not.

Source: transformers/models/glm4_moe_lite, whose attention and router are those of deepseek_v3.
"""

from dataclasses import replace

from ..families import deepseek
from ..hf.fields import Field, Fixed
from ..hf.fields_moe import Aliased, DenseTypes, ExpertGroups, LowRankQuery
from ..mtp import FurtherLayers
from .deepseek_v3 import TABLE as DEEPSEEK_V3

OWN = (
    Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
    Field("qk_nope_head_dim", "qk_head_dim", 192),
    Field("v_head_dim", "v_head_dim", 256),
    DenseTypes(1),
)
FIELDS = deepseek.fields(
    Field("moe_intermediate_size", "moe_ffn_hidden_size", 1536),
    Aliased(("n_routed_experts", "num_local_experts"), "num_moe_experts", 64),
    Field("num_experts_per_tok", "moe_router_topk", 4),
    Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 1.8, kind=float),
    LowRankQuery(768),
    ExpertGroups((1, 1), ranked_by=2),
    Fixed("norm_topk_prob", True),
    Fixed("rope_interleave", True),
    Fixed("partial_rotary_factor", 1.0),
    FurtherLayers(),
    sizes=(47, 2048, 10240, 20, 154880, 202752),
    dense=1,
    shared=1,
    scoring="sigmoid",
)

TABLE = replace(
    DEEPSEEK_V3,
    architecture="glm4_moe_lite",
    hf_class="Glm4MoeLiteForCausalLM",
    fields=tuple(next((own for own in OWN if own.hf_keys & rule.hf_keys), rule) for rule in FIELDS),
    verified=("bit-equal", "transformers logits", "megatron-core logits"),
)
