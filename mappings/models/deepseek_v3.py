"""DeepSeek-V3, R1, Kimi K2, Moonlight and what else is a ``DeepseekV3ForCausalLM``.

Weights in FP8 are decoded as they are read.

Source: see :mod:`nemoconv.mappings.families.deepseek`.
"""

from ..blocks.mlp import Mixture
from ..blocks.mtp import Mtp
from ..families.deepseek import CLASSES, CORRECTION, deepseek_like, dense_first, released_code
from ..hf.fields import Field, Fixed
from ..hf.fields_moe import Aliased, DenseFirst, ExpertGroups, LowRankQuery, SharedExperts
from ..mtp import FurtherFields, FurtherLayers
from ..nemo2.entry import Nemo2

MIXTURE = Mixture(scores="sigmoid", normalized=True, layer_sets=dense_first)
NEMO2 = Nemo2(
    "nemo.collections.llm.gpt.model.deepseek",
    "DeepSeekModel",
    "DeepSeekV3Config",
    (FurtherFields(),),
    defaults=CLASSES,
)

DEEPSEEK_V3 = deepseek_like(
    ("deepseek_v3", "kimi_k2"),
    "DeepseekV3ForCausalLM",
    Field("moe_intermediate_size", "moe_ffn_hidden_size", 2048),
    Aliased(("n_routed_experts", "num_local_experts"), "num_moe_experts", 256),
    Field("num_experts_per_tok", "moe_router_topk", 8),
    Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 2.5, kind=float),
    LowRankQuery(),
    released_code("DeepseekV3"),
    ExpertGroups((8, 4), ranked_by=2),
    Fixed("norm_topk_prob", True),
    Fixed("rope_interleave", True),
    FurtherLayers(),
    SharedExperts(1),
    DenseFirst(3),
    mixture=MIXTURE,
    mtp=Mtp(),
    names=CORRECTION,
    scoring="sigmoid",
    defaults={
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_attention_heads": 128,
        "vocab_size": 129280,
        "max_position_embeddings": 4096,
    },
    nemo2=NEMO2,
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "both with multi-token prediction",
        "real NeMo load",
        "transformers' own FP8 decoding",
    ),
)
