"""The text model of Llama 4: experts on all or some layers, a shared expert, layers without rope.

NeMo's Llama 4 agrees with transformers up to ``attention_chunk_size`` tokens: beyond that NeMo cuts into
chunks also the layers without rope, which transformers does not.

Source: transformers/models/llama4, nemo/collections/llm/gpt/model/llama.py and llama4_utils.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from nemoconv.mappings.blocks import FC2, GATED_FC1, INV_FREQ, TIED, mlp_norm
from nemoconv.mappings.config_fields import Dtype, Field, Fixed, Unread, Value
from nemoconv.mappings.llama4_fields import (
    ExpertFreq,
    ExpertLayers,
    LayersWithoutRope,
    NopeInterval,
    TemperatureTuning,
    UnscaledRope,
)
from nemoconv.mappings.nemo_configs_llama4 import LLAMA4_DEFAULTS, SPEC
from nemoconv.mappings.nemo_fields import Count, NemoClasses, Same, with_rules
from nemoconv.mappings.nemo_fields import Fixed as NemoFixed
from nemoconv.mappings.nemo_fields_moe import MOE_DECODER, Repeated
from nemoconv.mappings.rope import Rope
from nemoconv.mappings.rules_moe import (
    AFTER,
    BEFORE,
    EXPERT_NORM,
    moe_sizes,
    renamed,
    router,
    shared_experts,
    shared_modules,
    sparse_modules,
    stacked_experts,
)
from nemoconv.mappings.table import Table


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return {**moe_sizes(config), "shared_ffn": config["moe_ffn_hidden_size"]}


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    freq, layers = config["moe_layer_freq"], range(config["num_layers"])
    sparse = frozenset(layer for layer in layers if freq == 1 or freq[layer])
    return {"sparse": sparse, "dense": frozenset(layers) - sparse}


def alike(config: Mapping[str, Value]) -> bool:
    return bool(config["moe_layer_freq"] == 1)


TABLE = Table(
    architecture="llama4_text",
    hf_class="Llama4ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.llama",
        model="LlamaModel",
        config="Llama4Config",
        defaults=LLAMA4_DEFAULTS,
        rules=with_rules(
            MOE_DECODER,
            NemoFixed("rotary_interleaved", True, written=True),
            NemoFixed("moe_router_topk", 1, written=True),
            NemoFixed("moe_router_pre_softmax", False, written=True),
            NemoFixed("moe_router_score_function", "sigmoid", written=True),
            NemoFixed("moe_apply_probs_on_input", True, written=True),
            NemoFixed("transformer_layer_spec", SPEC),
            Repeated("moe_shared_expert_intermediate_size", "moe_ffn_hidden_size"),
            Same("qk_l2_norm"),
            Count("attention_chunk_size"),
            ExpertFreq(),
            NopeInterval(),
            UnscaledRope(),
        ),
        marks=(("num_moe_experts", True),),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 48),
        Field("hidden_size", "hidden_size", 5120),
        Field("intermediate_size_mlp", "ffn_hidden_size", 16384),
        Field("intermediate_size", "moe_ffn_hidden_size", 8192),
        Field("num_attention_heads", "num_attention_heads", 40),
        Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
        Field("head_dim", "kv_channels", 128),
        Field("vocab_size", "vocab_size", 202048),
        Field("max_position_embeddings", "seq_length", 131072),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("num_local_experts", "num_moe_experts", 16),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        Field("use_qk_norm", "qk_l2_norm", True, kind=bool),
        Field("attention_chunk_size", "attention_chunk_size", 8192),
        Fixed("num_experts_per_tok", 1),
        Fixed("attention_bias", False),
        Fixed("hidden_act", "silu"),
        Unread(("for_llm_compressor", "cache_implementation")),
        ExpertLayers(),
        LayersWithoutRope(),
        TemperatureTuning(),
        Rope(500000.0),
        Dtype(),
    ),
    rules=(
        *BEFORE,
        *(
            replace(renamed(rule, "mlp.", "feed_forward."), layers="dense")
            for rule in (mlp_norm(), GATED_FC1, FC2)
        ),
        replace(EXPERT_NORM, layers="sparse", also=()),
        router("feed_forward.router.weight", layers="sparse"),
        *stacked_experts("feed_forward.experts.", "half moe_ffn", layers="sparse"),
        *shared_experts("feed_forward.shared_expert", layers="sparse"),
        *AFTER,
    ),
    modules=(*sparse_modules(), *shared_modules()),
    sizes=sizes,
    layer_sets=layer_sets,
    alike=alike,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (up to attention_chunk_size tokens)",
    ),
)
