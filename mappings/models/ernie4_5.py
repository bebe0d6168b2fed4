"""Ernie 4.5 without experts: an ``Ernie4_5ForCausalLM``, a Llama whose rotary embedding turns pairs of
neighbours, with heads of their own size.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/ernie4_5, megatron/core/models/common/embeddings/rope_utils.py.
"""

from ..blocks import DECODER, INV_FREQ, MODULES, TIED
from ..families.plain_gpt import plain_gpt
from ..hf.fields import Dtype, Field, Fixed
from ..hf.fields_moe import ReleasedCode
from ..hf.rope import Rope
from ..nemo2.fields import Fixed as NemoFixed
from ..table import Table

#: the code that came with the first release computes the same
RELEASED = frozenset(
    {
        "configuration_ernie4_5.Ernie4_5_Config",
        "modeling_ernie4_5.Ernie4_5_Model",
        "modeling_ernie4_5.Ernie4_5_ForCausalLM",
    }
)

TABLE = Table(
    architecture="ernie4_5",
    hf_class="Ernie4_5ForCausalLM",
    other_classes=("Ernie4_5_ForCausalLM",),
    nemo=plain_gpt(
        NemoFixed("rotary_interleaved", True, written=True),
        marks=(("rotary_interleaved", True), ("add_qkv_bias", False)),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 18),
        Field("hidden_size", "hidden_size", 1024),
        Field("intermediate_size", "ffn_hidden_size", 3072),
        Field("num_attention_heads", "num_attention_heads", 16),
        Field("num_key_value_heads", "num_query_groups", 2, default_from="num_attention_heads"),
        Field("head_dim", "kv_channels", 128),
        Field("vocab_size", "vocab_size", 103424),
        Field("max_position_embeddings", "seq_length", 131072),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        Fixed("use_bias", False),
        Fixed("hidden_act", "silu"),
        ReleasedCode(RELEASED),
        Rope(500_000.0),
        Dtype(),
    ),
    rules=DECODER,
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
