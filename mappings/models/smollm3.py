"""SmolLM3: a ``SmolLM3ForCausalLM``, a Llama without rotary embeddings on some layers (every fourth).

NeMo 2 has no class for it: its plain ``GPTConfig`` has megatron-core's ``no_rope_freq``.

Source: transformers/models/smollm3, megatron/core/transformer/attention.py and transformer_config.py.
"""

from ..blocks import DECODER, INV_FREQ, MODULES, TIED
from ..families.no_rope import NoRopeFreq, NoRopeLayers
from ..families.plain_gpt import plain_gpt
from ..hf.fields import Dtype, Field, Fixed, FullAttention, HeadDim
from ..hf.rope import Rope
from ..table import Table

TABLE = Table(
    architecture="smollm3",
    hf_class="SmolLM3ForCausalLM",
    nemo=plain_gpt(NoRopeFreq(), marks=(("rotary_interleaved", False), ("add_qkv_bias", False))),
    fields=(
        Field("num_hidden_layers", "num_layers", 36),
        Field("hidden_size", "hidden_size", 2048),
        Field("intermediate_size", "ffn_hidden_size", 11008),
        Field("num_attention_heads", "num_attention_heads", 16),
        Field("num_key_value_heads", "num_query_groups", 4, default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 128256),
        Field("max_position_embeddings", "seq_length", 32768),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        NoRopeLayers(),
        FullAttention(),
        Fixed("attention_bias", False),
        Fixed("mlp_bias", False),
        Fixed("hidden_act", "silu"),
        Rope(2_000_000.0),
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
