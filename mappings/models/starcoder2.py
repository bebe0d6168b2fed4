"""StarCoder2: a ``Starcoder2ForCausalLM``, with biases everywhere, LayerNorm, and an MLP without a gate.

Source: transformers/models/starcoder2, nemo/collections/llm/gpt/model/starcoder2.py.
"""

from ..blocks import (
    EMBEDDING,
    HF,
    INV_FREQ,
    MODULES,
    NEMO,
    OUTPUT,
    PROJ,
    QKV,
    QKV_BIAS,
    TIED,
    final_norm,
    input_norm,
    mlp_norm,
)
from ..hf.fields import Dtype, Field, Fixed, HeadDim, Nullable, Unread
from ..hf.rope import Rope
from ..nemo2.configs_dense import GELU, STARCODER2_DEFAULTS, TANH_GELU
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import FusedGelu, NemoClasses, Window, with_rules
from ..rules import same
from ..table import Table

#: in the files of the released models, read by the code that trained them only
LEFT_OVER = tuple(
    """activation_function attention_softmax_in_fp32 layer_norm_epsilon mlp_type norm_type
    scale_attention_softmax_in_fp32 scale_attn_weights""".split()
)

TABLE = Table(
    architecture="starcoder2",
    hf_class="Starcoder2ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.starcoder2",
        model="Starcoder2Model",
        config="Starcoder2Config",
        defaults=STARCODER2_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NemoFixed("normalization", "LayerNorm"),
            NemoFixed("gated_linear_unit", False, written=True),
            NemoFixed("add_bias_linear", True, written=True),
            FusedGelu(GELU, TANH_GELU),
            Window(),
        ),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 30),
        Field("hidden_size", "hidden_size", 3072),
        Field("intermediate_size", "ffn_hidden_size", 12288),
        Field("num_attention_heads", "num_attention_heads", 24),
        Field("num_key_value_heads", "num_query_groups", 2, default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 49152),
        Field("max_position_embeddings", "seq_length", 4096),
        Field("norm_epsilon", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.018042, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        Field("hidden_act", "hidden_act", "gelu_pytorch_tanh", kind=str),
        Nullable("sliding_window", "sliding_window"),
        Fixed("use_bias", True),
        Unread(("residual_dropout", "embedding_dropout", *LEFT_OVER)),
        Rope(),
        Dtype(),
    ),
    rules=(
        EMBEDDING,
        *(input_norm(kind) for kind in ("weight", "bias")),
        QKV,
        QKV_BIAS,
        PROJ,
        same(NEMO + "self_attention.linear_proj.bias", HF + "self_attn.o_proj.bias", "hidden"),
        *(mlp_norm(kind) for kind in ("weight", "bias")),
        same(NEMO + "mlp.linear_fc1.weight", HF + "mlp.c_fc.weight", "ffn hidden", cut="ffn"),
        same(NEMO + "mlp.linear_fc1.bias", HF + "mlp.c_fc.bias", "ffn", cut="ffn"),
        same(NEMO + "mlp.linear_fc2.weight", HF + "mlp.c_proj.weight", "hidden ffn", cut="ffn"),
        same(NEMO + "mlp.linear_fc2.bias", HF + "mlp.c_proj.bias", "hidden"),
        *(final_norm(kind) for kind in ("weight", "bias")),
        OUTPUT,
    ),
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import, export of float32",
    ),
)
