"""Gemma 2: a ``Gemma2ForCausalLM``, a Gemma with four norms a layer, soft caps and a window on every
second layer.

Source: transformers/models/gemma2, nemo/collections/llm/gpt/model/gemma2.py. NeMo's own layers compute
the rest alike, but put the window on the other layers (2, 4, ... counted from 1, not 1, 3, ...) and take
1e-05 for the epsilon of the norms after attention and MLP. No field changes that: the weights are the
same, and NeMo's results differ from transformers' on texts longer than the window.
"""

from .. import blocks
from ..blocks import HF, NEMO
from ..hf.fields import AlternatingWindow, Dtype, Field, Fixed, Nullable, OneOf, Unread
from ..hf.rope import Rope
from ..nemo2.configs_dense import GEMMA2_DEFAULTS, GEMMA2_SPEC, TANH_GELU
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, Same, Window, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..rules import same
from ..table import Module, Table

ATTENTION_NORM = NEMO + "self_attention.linear_proj.post_layernorm"
MLP_NORM = NEMO + "mlp.linear_fc2.post_layernorm"

TABLE = Table(
    architecture="gemma2",
    hf_class="Gemma2ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.gemma2",
        model="Gemma2Model",
        config="Gemma2Config",
        defaults=GEMMA2_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            NemoFixed("layernorm_zero_centered_gamma", True, written=True),
            NemoFixed("activation_func", TANH_GELU),
            NemoFixed("transformer_layer_spec", GEMMA2_SPEC),
            Window(),
            Same("query_pre_attn_scalar"),
            Same("attn_logit_softcapping"),
            Same("final_logit_softcapping"),
        ),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 26),
        Field("hidden_size", "hidden_size", 2304),
        Field("intermediate_size", "ffn_hidden_size", 9216),
        Field("num_attention_heads", "num_attention_heads", 8),
        Field("num_key_value_heads", "num_query_groups", 4),
        Field("head_dim", "kv_channels", 256),
        Field("vocab_size", "vocab_size", 256000),
        Field("max_position_embeddings", "seq_length", 8192),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        Nullable("attn_logit_softcapping", "attn_logit_softcapping", 50.0, kind=float),
        Nullable("final_logit_softcapping", "final_logit_softcapping", 30.0, kind=float),
        AlternatingWindow(4096),
        Fixed("hidden_activation", "gelu_pytorch_tanh"),
        OneOf("use_bidirectional_attention", (None, False)),
        Fixed("attention_bias", False),
        Unread(("hidden_act", "cache_implementation", "sliding_window_size")),
        Rope(),
        Dtype(),
    ),
    rules=(
        blocks.EMBEDDING,
        blocks.input_norm(),
        blocks.QKV,
        blocks.PROJ,
        same(ATTENTION_NORM + ".weight", HF + "post_attention_layernorm.weight", "hidden"),
        blocks.mlp_norm(hf="pre_feedforward_layernorm"),
        blocks.GATED_FC1,
        blocks.FC2,
        same(MLP_NORM + ".weight", HF + "post_feedforward_layernorm.weight", "hidden"),
        blocks.final_norm(),
        blocks.OUTPUT,
    ),
    modules=(*blocks.MODULES[1:], Module(ATTENTION_NORM), Module(MLP_NORM)),
    ignored=(blocks.INV_FREQ,),
    tied=blocks.TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits within the window, with stand-ins for NeMo's layers",
        "real NeMo import, export of float32",
    ),
)
