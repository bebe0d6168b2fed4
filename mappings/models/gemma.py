"""Gemma and CodeGemma: a ``GemmaForCausalLM``, a tied Llama with wide heads, RMSNorm by 1 + weight, a
gated GELU by tanh, and embeddings that both sides scale when they run.

Source: transformers/models/gemma, nemo/collections/llm/gpt/model/gemma.py.
"""

from ..blocks import DECODER, INV_FREQ, MODULES, TIED
from ..hf.fields import Dtype, Field, Fixed, OneOf
from ..hf.rope import Rope
from ..nemo2.configs_dense import GEMMA_DEFAULTS, TANH_GELU
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..table import Table

TABLE = Table(
    architecture="gemma",
    hf_class="GemmaForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.gemma",
        model="GemmaModel",
        config="GemmaConfig",
        defaults=GEMMA_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            NemoFixed("layernorm_zero_centered_gamma", True, written=True),
            NemoFixed("activation_func", TANH_GELU),
        ),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 28),
        Field("hidden_size", "hidden_size", 3072),
        Field("intermediate_size", "ffn_hidden_size", 24576),
        Field("num_attention_heads", "num_attention_heads", 16),
        Field("num_key_value_heads", "num_query_groups", 16),
        Field("head_dim", "kv_channels", 256),
        Field("vocab_size", "vocab_size", 256000),
        Field("max_position_embeddings", "seq_length", 8192),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        # the first files say "gelu" and mean tanh; transformers of all versions reads them so
        OneOf("hidden_act", ("gelu_pytorch_tanh", "gelu")),
        OneOf("hidden_activation", ("gelu_pytorch_tanh", None)),
        OneOf("use_bidirectional_attention", (None, False)),
        Fixed("attention_bias", False),
        Rope(),
        Dtype(),
    ),
    rules=DECODER,
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits with a stand-in for the norms",
        "real NeMo import, export of float32",
    ),
)
