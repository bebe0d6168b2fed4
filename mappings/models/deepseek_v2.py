"""DeepSeek-V2-Lite and what else is a ``DeepseekV2ForCausalLM`` that Megatron routes alike.

Source: see :mod:`nemoconv.mappings.families.deepseek`.
"""

from ..blocks.mlp import Mixture
from ..families.deepseek import CLASSES, deepseek_like, dense_first, released_code
from ..hf.fields import Field, Fixed, OneOf
from ..hf.fields_moe import DenseFirst, ExpertGroups, LowRankQuery, SharedExperts
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoFixed

DEEPSEEK_V2 = deepseek_like(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    Field("moe_intermediate_size", "moe_ffn_hidden_size", 1407),
    Field("n_routed_experts", "num_moe_experts", 64),
    Field("num_experts_per_tok", "moe_router_topk"),
    Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 1.0, kind=float),
    LowRankQuery(),
    released_code("DeepseekV2"),
    ExpertGroups((None, None), ranked_by=1),
    Fixed("norm_topk_prob", False),
    OneOf("num_nextn_predict_layers", (0,)),
    SharedExperts(2),
    DenseFirst(0),
    mixture=Mixture(normalized=False, layer_sets=dense_first),
    scoring="softmax",
    defaults={"vocab_size": 102400},
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.deepseek",
        "DeepSeekModel",
        "DeepSeekV2Config",
        (
            NemoFixed("moe_router_score_function", "softmax", written=True),
            NemoFixed("moe_router_enable_expert_bias", False, written=True),
        ),
        defaults=CLASSES,
    ),
    samples=({"num_experts_per_tok": 6},),
    proofs=("bit-equal", "transformers logits", "megatron-core logits"),
)
