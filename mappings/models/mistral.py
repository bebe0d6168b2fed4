"""Mistral 7B, Mistral-NeMo, Mistral Large: a ``MistralForCausalLM``, a Llama with a sliding window.

Source: transformers/models/mistral, nemo/collections/llm/gpt/model/mistral.py. A window of w tokens
there counts the token itself; Megatron's ``window_size`` counts those before it, so it is w - 1. NeMo's
own importer writes w, one too many; such a checkpoint is read as the w + 1 that NeMo computes.
"""

from ..blocks import DECODER, INV_FREQ, MODULES, TIED
from ..hf.fields import Dtype, Field, Fixed, HeadDim, Nullable
from ..hf.rope import Rope
from ..nemo2.configs_dense import MISTRAL_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, Window, with_rules
from ..table import Table

TABLE = Table(
    architecture="mistral",
    hf_class="MistralForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.mistral",
        model="MistralModel",
        config="MistralConfig7B",
        defaults=MISTRAL_DEFAULTS,
        rules=with_rules(NEMO_FIELDS, NO_BIASES, Window()),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 14336),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "seq_length", 4096 * 32),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Nullable("sliding_window", "sliding_window", 4096),
        Fixed("hidden_act", "silu"),
        Rope(),
        Dtype(),
    ),
    rules=DECODER,
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
