"""DeepSeek-V3, R1, Kimi K2, Moonlight and what else is a ``DeepseekV3ForCausalLM``.

Weights in FP8 are decoded as they are read.

Source: see :mod:`nemoconv.mappings.families.deepseek`.
"""

from dataclasses import replace

from ..blocks import HF, NEMO, TIED
from ..families import deepseek
from ..hf.fields import Field, Fixed
from ..hf.fields_moe import Aliased, ExpertGroups, LowRankQuery
from ..mtp import COPIES, FurtherFields, FurtherLayers, further_modules, further_rules
from ..nemo2.configs_moe import DEEPSEEK_DEFAULTS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import NemoClasses, with_rules
from ..nemo2.fields_moe import DEEPSEEK
from ..rules import same
from ..table import Table

CORRECTION = replace(
    same(NEMO + "mlp.router.expert_bias", HF + "mlp.gate.e_score_correction_bias", "experts"),
    layers="sparse",
    keeps_dtype=True,
)

RULES = (*deepseek.RULES, CORRECTION)

TABLE = Table(
    architecture="deepseek_v3",
    hf_class="DeepseekV3ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.deepseek",
        model="DeepSeekModel",
        config="DeepSeekV3Config",
        defaults=DEEPSEEK_DEFAULTS,
        rules=with_rules(
            DEEPSEEK,
            NemoFixed("moe_router_score_function", "sigmoid", written=True),
            NemoFixed("moe_router_enable_expert_bias", True, written=True),
            FurtherFields(),
        ),
        marks=(("moe_router_enable_expert_bias", True),),
    ),
    fields=deepseek.fields(
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 2048),
        Aliased(("n_routed_experts", "num_local_experts"), "num_moe_experts", 256),
        Field("num_experts_per_tok", "moe_router_topk", 8),
        Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 2.5, kind=float),
        LowRankQuery(),
        deepseek.released_code("DeepseekV3"),
        ExpertGroups((8, 4), ranked_by=2),
        Fixed("norm_topk_prob", True),
        Fixed("rope_interleave", True),
        FurtherLayers(),
        sizes=(61, 7168, 18432, 128, 129280, 4096),
        dense=3,
        shared=1,
        scoring="sigmoid",
    ),
    rules=(*RULES, *further_rules(RULES, "sparse")),
    modules=(*deepseek.MODULES, *further_modules(deepseek.MODULES, "sparse")),
    sizes=deepseek.sizes,
    layer_sets=deepseek.layer_sets,
    further=HF,
    copies=COPIES,
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "both for further tokens",
        "real NeMo load",
        "transformers' own FP8 decoding",
    ),
)
