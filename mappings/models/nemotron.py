"""Nemotron-3, Nemotron-4 and Minitron: a ``NemotronForCausalLM``, with LayerNorm by 1 + weight, squared
ReLU without a gate, and the rotary embedding on half of each head.

Source: transformers/models/nemotron, nemo/collections/llm/gpt/model/nemotron.py.
"""

from ..blocks import (
    EMBEDDING,
    FC2,
    HF,
    INV_FREQ,
    MODULES,
    NEMO,
    OUTPUT,
    PROJ,
    QKV,
    TIED,
    final_norm,
    input_norm,
    mlp_norm,
)
from ..hf.fields import Dtype, Field, Fixed, HeadDim, Unread
from ..hf.rope import PartialRope
from ..nemo2.configs_dense import NEMOTRON_DEFAULTS, SQUARED_RELU
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, Same, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..rules import same
from ..table import Table

TABLE = Table(
    architecture="nemotron",
    hf_class="NemotronForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.nemotron",
        model="NemotronModel",
        config="NemotronConfig",
        defaults=NEMOTRON_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            NemoFixed("normalization", "LayerNorm"),
            NemoFixed("layernorm_zero_centered_gamma", True, written=True),
            NemoFixed("gated_linear_unit", False, written=True),
            NemoFixed("activation_func", SQUARED_RELU),
            Same("rotary_percent"),
        ),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 6144),
        Field("intermediate_size", "ffn_hidden_size", 24576),
        Field("num_attention_heads", "num_attention_heads", 48),
        Field("num_key_value_heads", "num_query_groups", default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 256000),
        Field("max_position_embeddings", "seq_length", 4096),
        Field("norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.0134, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Fixed("attention_bias", False),
        Fixed("mlp_bias", False),
        Fixed("hidden_act", "relu2"),
        Unread(("kv_channels",)),  # of released models, beside head_dim or equal to its default
        PartialRope(default_factor=0.5),
        Dtype(),
    ),
    rules=(
        EMBEDDING,
        *(input_norm(kind) for kind in ("weight", "bias")),
        QKV,
        PROJ,
        *(mlp_norm(kind) for kind in ("weight", "bias")),
        same(NEMO + "mlp.linear_fc1.weight", HF + "mlp.up_proj.weight", "ffn hidden", cut="ffn"),
        FC2,
        *(final_norm(kind) for kind in ("weight", "bias")),
        OUTPUT,
    ),
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits with a stand-in for the norms",
        "real NeMo import and export",
    ),
)
