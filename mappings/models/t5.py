"""T5 1.1, Flan-T5, UL2 and mT5: a ``T5ForConditionalGeneration`` with a gated MLP and its own output layer.

NeMo's importer leaves the relative positions at megatron-core's 32 buckets up to a distance of 128, whatever
its fields say. Source: transformers/models/t5, nemo/collections/llm/t5/model/t5.py,
megatron/core/models/T5/t5_model.py.
"""

from dataclasses import replace

from ..hf.fields import ConfigRule, Dtype, Field, Fixed, Unread
from ..nemo2.configs_t5 import T5_DEFAULTS
from ..nemo2.fields import DECODER, NO_BIASES, NemoClasses, Unused, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..table import Table
from .t5_fields import AllHeads, EncoderLayers, EqualStacks, Gate, GatedActivation, PlainLayers, Unscaled
from .t5_rules import BUCKETS, MODULES, RULES, sizes

DISTANCE = 128
NOT_READ = """rotary_base rotary_percent seq_len_interpolation_factor seq_length seq_length_dec
    max_position_embeddings relative_attention_num_buckets relative_attention_max_distance""".split()


def fields(
    vocabulary: int, ffn: int, layers: int, heads: int, gate: str, scales: bool
) -> tuple[ConfigRule, ...]:
    """Rules for config.json, with transformers' defaults."""
    return (
        EqualStacks(layers),
        Field("d_model", "hidden_size", 512),
        Field("d_ff", "ffn_hidden_size", ffn),
        Field("num_heads", "num_attention_heads", heads),
        Field("d_kv", "kv_channels", 64),
        AllHeads(),
        Field("vocab_size", "vocab_size", vocabulary),
        Field("layer_norm_epsilon", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_factor", "init_method_std", 1.0, kind=float),
        Field("dropout_rate", "attention_dropout", 0.1, kind=float),
        Fixed("relative_attention_num_buckets", BUCKETS),
        Fixed("relative_attention_max_distance", DISTANCE),
        Gate(gate),
        Unscaled(scales),
        Unread(("n_positions", "classifier_dropout", "output_past")),
        Dtype(),
    )


TABLE = Table(
    architecture="t5",
    hf_class="T5ForConditionalGeneration",
    nemo=NemoClasses(
        module="nemo.collections.llm.t5.model.t5",
        model="T5Model",
        config="T5Config",
        defaults=T5_DEFAULTS,
        rules=with_rules(
            DECODER,
            NO_BIASES,
            NemoFixed("position_embedding_type", "relative", written=True),
            NemoFixed("normalization", "RMSNorm", written=True),
            NemoFixed("softmax_scale", 1.0, written=True),
            NemoFixed("share_embeddings_and_output_weights", False, written=True),
            EncoderLayers(),
            GatedActivation(),
            PlainLayers(),
            Unused(tuple(NOT_READ)),
        ),
        marks=(("position_embedding_type", "relative"),),
    ),
    fields=fields(32128, 2048, 6, 8, "relu", scales=True),
    rules=RULES,
    modules=MODULES,
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    tied=tuple((f"{name}.embed_tokens.weight", "shared.weight") for name in ("encoder", "decoder")),
    twice=(("output_layer.weight", "lm_head.output_layer.weight"),),
    sizes=sizes,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits, with a stand-in for its attention",
        "real NeMo import and export",
    ),
)
MT5 = replace(
    TABLE,
    architecture="mt5",
    hf_class="MT5ForConditionalGeneration",
    nemo=replace(TABLE.nemo, marks=()),
    fields=fields(250112, 1024, 8, 6, "gated-gelu", scales=False),
)
