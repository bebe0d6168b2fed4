"""Gemma 2: a ``Gemma2ForCausalLM``, a Gemma with four norms a layer, soft caps and a window on every
second layer.

Source: transformers/models/gemma2, nemo/collections/llm/gpt/model/gemma2.py. NeMo's own layers compute
the rest alike, but put the window on the other layers (2, 4, ... counted from 1, not 1, 3, ...) and take
1e-05 for the epsilon of the norms after attention and MLP. No field changes that: the weights are the
same, and NeMo's results differ from transformers' on texts longer than the window.
"""

from dataclasses import replace

from ..blocks.attention import Attention
from ..hf.fields import AlternatingWindow, Field, Fixed, Nullable, OneOf, Unread
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoFixed, Same
from ..nemo2.symbols import GEMMA2_SPEC
from .gemma import BLOCKS

NAMES = {
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
DEFAULTS = {
    "num_hidden_layers": 26,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

GEMMA2 = llama_like(
    "gemma2",
    "Gemma2ForCausalLM",
    names=NAMES,
    blocks=replace(BLOCKS, attention=Attention(stateless=True), whole_every=2),
    defaults=DEFAULTS,
    config=(
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        Nullable("attn_logit_softcapping", "attn_logit_softcapping", 50.0, kind=float),
        Nullable("final_logit_softcapping", "final_logit_softcapping", 30.0, kind=float),
        AlternatingWindow(4096),
        Fixed("hidden_activation", "gelu_pytorch_tanh"),
        OneOf("use_bidirectional_attention", (None, False)),
        Unread(("hidden_act", "cache_implementation", "sliding_window_size")),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.gemma2",
        "Gemma2Model",
        "Gemma2Config",
        (
            NemoFixed("transformer_layer_spec", GEMMA2_SPEC),
            Same("query_pre_attn_scalar"),
            Same("attn_logit_softcapping"),
            Same("final_logit_softcapping"),
        ),
    ),
    nemo1=Nemo1(
        words={"apply_embedding_scaling": True, "name": "megatron_gemma2"},
        implied={"transformer_layer_spec": GEMMA2_SPEC},
        customized=("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    ),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits within the window, with stand-ins for NeMo's layers",
        "real NeMo import, export of float32",
    ),
)
