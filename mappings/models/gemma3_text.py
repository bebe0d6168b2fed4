"""Gemma 3 without its eyes: a ``Gemma3ForCausalLM``, a Gemma 2 without soft caps that normalizes q and k,
with a window and another rotary base on most layers.

Source: transformers/models/gemma3, nemo/collections/llm/gpt/model/gemma3.py. NeMo takes 1e-05 for the
epsilon of the norms after attention and MLP, and no field changes that.
"""

from ..blocks import INV_FREQ, MODULES, QK_MODULES, QK_NORMS, TIED
from ..hf.fields import Dtype, Field, Fixed, OneOf, Unread, WindowPattern
from ..hf.rope import TwoRopes
from ..nemo2.configs_dense import GEMMA3_DEFAULTS, GEMMA3_SPEC, TANH_GELU
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, Gemma3Attention, NemoClasses, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..table import Module, Table
from . import gemma2

TABLE = Table(
    architecture="gemma3_text",
    hf_class="Gemma3ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.gemma3",
        model="Gemma3Model",
        config="Gemma3Config1B",
        defaults=GEMMA3_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            NemoFixed("layernorm_zero_centered_gamma", True, written=True),
            NemoFixed("activation_func", TANH_GELU),
            NemoFixed("transformer_layer_spec", GEMMA3_SPEC),
            NemoFixed("is_vision_language", False, written=True),
            Gemma3Attention(),
        ),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 26),
        Field("hidden_size", "hidden_size", 2304),
        Field("intermediate_size", "ffn_hidden_size", 9216),
        Field("num_attention_heads", "num_attention_heads", 8),
        Field("num_key_value_heads", "num_query_groups", 4),
        Field("head_dim", "kv_channels", 256),
        Field("vocab_size", "vocab_size", 262208),
        Field("max_position_embeddings", "seq_length", 131072),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        WindowPattern(4096),
        Fixed("attn_logit_softcapping", None),
        Fixed("final_logit_softcapping", None),
        Fixed("hidden_activation", "gelu_pytorch_tanh"),
        OneOf("use_bidirectional_attention", (False, None)),
        Fixed("attention_bias", False),
        Unread(("cache_implementation",)),
        TwoRopes(),
        Dtype(),
    ),
    rules=(*gemma2.TABLE.rules, *QK_NORMS),
    modules=(*MODULES, *QK_MODULES, Module(gemma2.ATTENTION_NORM), Module(gemma2.MLP_NORM)),
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits with stand-ins for NeMo's layers",
        "real NeMo export of float32, by hand",
    ),
)
