"""T5 1.1, Flan-T5, UL2 and mT5: a ``T5ForConditionalGeneration`` with a gated MLP and its own output layer.

NeMo's importer leaves the relative positions at megatron-core's 32 buckets up to a distance of 128, whatever
its fields say. Source: transformers/models/t5, nemo/collections/llm/t5/model/t5.py,
megatron/core/models/T5/t5_model.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from nemoconv.mappings.blocks import NEMO
from nemoconv.mappings.config_fields import ConfigRule, Dtype, Field, Fixed, Unread, Value
from nemoconv.mappings.nemo_configs_t5 import T5_DEFAULTS
from nemoconv.mappings.nemo_fields import DECODER, NO_BIASES, NemoClasses, Unused, with_rules
from nemoconv.mappings.nemo_fields import Fixed as NemoFixed
from nemoconv.mappings.rules import fused_qkv, gated, same, vocabulary
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.mappings.t5_fields import (
    AllHeads,
    EncoderLayers,
    EqualStacks,
    Gate,
    GatedActivation,
    PlainLayers,
    Unscaled,
)
from nemoconv.mappings.table import Module, Part, Rule, Table

BUCKETS, DISTANCE = 32, 128
ENCODER = NEMO.replace("decoder", "encoder")
#: what both stacks have: Megatron's names begin with the first, Hugging Face's with the second; the number of
#: the MLP among a layer's parts
STACKS = ((ENCODER, "encoder.block.{layer}.layer.", 1), (NEMO, "decoder.block.{layer}.layer.", 2))
CROSS = NEMO + "cross_attention."
HF_CROSS = "decoder.block.{layer}.layer.1."
ROWS = "(group query_head head_dim)"
NOT_READ = """rotary_base rotary_percent seq_len_interpolation_factor seq_length seq_length_dec
    max_position_embeddings relative_attention_num_buckets relative_attention_max_distance""".split()


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return attention_sizes(config) | {"buckets": BUCKETS, "heads": config["num_attention_heads"], "pair": 2}


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


def stack(nemo: str, hf: str, mlp: int) -> tuple[Rule, ...]:
    """Self-attention and MLP of the encoder's layers, or of the decoder's."""
    attention, dense = hf + "0.SelfAttention.", f"{hf}{mlp}.DenseReluDense."
    qkv = nemo + "self_attention.linear_qkv."
    norms = (
        same(qkv + "layer_norm_weight", hf + "0.layer_norm.weight", "hidden"),
        same(nemo + "mlp.linear_fc1.layer_norm_weight", f"{hf}{mlp}.layer_norm.weight", "hidden"),
    )
    return (
        norms[0],
        fused_qkv(qkv + "weight", *(f"{attention}{name}.weight" for name in "qkv")),
        same(
            nemo + "self_attention.linear_proj.weight", attention + "o.weight", f"hidden {ROWS}", cut="group"
        ),
        norms[1],
        gated(nemo + "mlp.linear_fc1.weight", dense + "wi_0.weight", dense + "wi_1.weight"),
        same(nemo + "mlp.linear_fc2.weight", dense + "wo.weight", "hidden ffn", cut="ffn"),
    )


KEY_AND_VALUE = tuple(
    Part(f"{HF_CROSS}EncDecAttention.{name}.weight", "(group head_dim) hidden", (("pair", at, 1),))
    for at, name in enumerate("kv")
)
ATTENTION = ("core_attention", "linear_proj", "linear_qkv")
LAYER_MODULES = (*(f"self_attention.{name}" for name in ATTENTION), "mlp.linear_fc1", "mlp.linear_fc2")
MODULES = (
    *(stack + name for stack in (ENCODER, NEMO) for name in LAYER_MODULES),
    NEMO + "pre_cross_attn_layernorm",
    *(CROSS + name for name in ("core_attention", "linear_q", "linear_kv", "linear_proj")),
    *(f"{stack}.final_layernorm" for stack in ("encoder", "decoder")),
    "lm_head.output_layer",
    "output_layer",
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
    rules=(
        vocabulary("embedding.word_embeddings.weight", "shared.weight"),
        *(
            same(
                f"{name}_relative_pos_emb.relative_attention_bias.weight",
                f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "buckets heads",
            )
            for name in ("encoder", "decoder")
        ),
        *(rule for each in STACKS for rule in stack(*each)),
        same(NEMO + "pre_cross_attn_layernorm.weight", HF_CROSS + "layer_norm.weight", "hidden"),
        same(CROSS + "linear_q.weight", HF_CROSS + "EncDecAttention.q.weight", f"{ROWS} hidden", cut="group"),
        Rule(CROSS + "linear_kv.weight", "(group pair head_dim) hidden", KEY_AND_VALUE, cut="group"),
        same(
            CROSS + "linear_proj.weight", HF_CROSS + "EncDecAttention.o.weight", f"hidden {ROWS}", cut="group"
        ),
        same("encoder.final_layernorm.weight", "encoder.final_layer_norm.weight", "hidden"),
        same("decoder.final_layernorm.weight", "decoder.final_layer_norm.weight", "hidden"),
        vocabulary("lm_head.output_layer.weight", "lm_head.weight"),
    ),
    modules=tuple(map(Module, MODULES)),
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
