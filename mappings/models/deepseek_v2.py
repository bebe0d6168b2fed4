"""DeepSeek-V2-Lite and what else is a ``DeepseekV2ForCausalLM`` that Megatron routes alike.

Source: see :mod:`nemoconv.mappings.families.deepseek`.
"""

from ..blocks import TIED
from ..families import deepseek
from ..hf.fields import Field, Fixed, OneOf
from ..hf.fields_moe import ExpertGroups, LowRankQuery
from ..nemo2.configs_moe import DEEPSEEK_DEFAULTS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses, with_rules
from ..nemo2.fields_moe import DEEPSEEK
from ..table import Table

TABLE = Table(
    architecture="deepseek_v2",
    hf_class="DeepseekV2ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.deepseek",
        model="DeepSeekModel",
        config="DeepSeekV2Config",
        defaults=DEEPSEEK_DEFAULTS,
        rules=with_rules(
            DEEPSEEK,
            NemoFixed("moe_router_score_function", "softmax", written=True),
            NemoFixed("moe_router_enable_expert_bias", False, written=True),
        ),
        marks=(("moe_router_enable_expert_bias", False),),
    ),
    fields=deepseek.fields(
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 1407),
        Field("n_routed_experts", "num_moe_experts", 64),
        Field("num_experts_per_tok", "moe_router_topk"),
        Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 1.0, kind=float),
        LowRankQuery(),
        deepseek.released_code("DeepseekV2"),
        ExpertGroups((None, None), ranked_by=1),
        Fixed("norm_topk_prob", False),
        Fixed("mlp_bias", False),
        OneOf("num_nextn_predict_layers", (0,)),
        sizes=(32, 4096, 11008, 32, 102400, 2048),
        dense=0,
        shared=2,
        scoring="softmax",
    ),
    rules=deepseek.RULES,
    modules=deepseek.MODULES,
    sizes=deepseek.sizes,
    layer_sets=deepseek.layer_sets,
    tied=TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits"),
)
