"""GLM-4.7-Flash and what else is a ``Glm4MoeLiteForCausalLM``: DeepSeek V3's layers under other defaults.

NeMo 2 has no class for it: its ``DeepSeekV3Config`` builds the same layers. Its norms of latents take
``rms_norm_eps`` (as vLLM's do), where transformers always takes 1e-6: at the released 1e-5 logits of random
weights differ by 1e-4, at 1e-6 they do not.

Source: transformers/models/glm4_moe_lite, whose attention and router are those of deepseek_v3.
"""

from dataclasses import replace

from ..blocks.mtp import Mtp
from ..families.deepseek import CORRECTION, deepseek_like
from ..hf.fields import Field, Fixed
from ..hf.fields_moe import Aliased, DenseTypes, ExpertGroups, LowRankQuery, SharedExperts
from ..mtp import FurtherLayers
from .deepseek_v3 import MIXTURE, NEMO2

GLM4_MOE_LITE = deepseek_like(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
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
    SharedExperts(1),
    DenseTypes(1),
    mixture=MIXTURE,
    mtp=Mtp(),
    names=CORRECTION,
    scoring="sigmoid",
    widths=(192, 64, 256),
    defaults={
        "num_hidden_layers": 47,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "num_attention_heads": 20,
        "vocab_size": 154880,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
    },
    nemo2=replace(NEMO2, read_as="deepseek_v3"),
    proofs=("bit-equal", "transformers logits", "megatron-core logits"),
)
