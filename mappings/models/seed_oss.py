"""Seed-OSS: a ``SeedOssForCausalLM``, a Llama with biases for q, k and v and heads of their own size.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/seed_oss, nemo/collections/llm/gpt/model/base.py.
"""

from dataclasses import replace

from ..blocks import DECODER, INV_FREQ, MODULES, QKV_BIAS, TIED
from ..families.plain_gpt import plain_gpt
from ..hf.fields import Dtype, Field, Fixed, Unread
from ..hf.rope import Rope
from ..nemo2.fields import Same
from ..table import Table

TABLE = Table(
    architecture="seed_oss",
    hf_class="SeedOssForCausalLM",
    nemo=plain_gpt(Same("add_qkv_bias"), marks=(("rotary_interleaved", False),)),
    fields=(
        Field("num_hidden_layers", "num_layers", 64),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 27648),
        Field("num_attention_heads", "num_attention_heads", 80),
        Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
        Field("head_dim", "kv_channels", 128),
        Field("vocab_size", "vocab_size", 155136),
        Field("max_position_embeddings", "seq_length", 524288),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.1, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("attention_bias", "add_qkv_bias", True, kind=bool),
        Fixed("attention_out_bias", False),
        Fixed("mlp_bias", False),
        Fixed("hidden_act", "silu"),
        Unread(("residual_dropout",)),
        Rope(),
        Dtype(),
    ),
    rules=(*DECODER, replace(QKV_BIAS, when=(("add_qkv_bias", True),))),
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
