"""What GPT-2 and GPTBigCode share: ``transformer.h``, learned positions, LayerNorm, biases everywhere.

Source: transformers/models/gpt2 and gpt_bigcode, nemo/collections/llm/gpt/model/base.py and starcoder.py.
"""

from __future__ import annotations

from typing import Any, Final

from ..architecture import Architecture
from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.names import Names
from ..blocks.place import ALWAYS, LAYER
from ..blocks.stack import Blocks, Stack
from ..hf.fields import ConfigRule, Fixed, Unread
from ..hf.fields_gpt import Gelu, GptInnerWidth
from ..llama_like import standard
from ..nemo2.entry import Nemo2

NAMES: Final = Names(
    layer="transformer.h.{layer}.",
    embedding="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    input_norm="ln_1",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    attention_output="attn.c_proj",
    mlp_norm="ln_2",
    gate="",
    up="mlp.c_fc",
    down="mlp.c_proj",
)
_KEYS: Final = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "attention_dropout": "attn_pdrop",
}
_DEFAULTS: Final = {
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "vocab_size": 50257,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "attn_pdrop": 0.1,
    "tie_word_embeddings": True,
}
#: of generation, of training, of heads for other tasks, of code that trained a model, and of rounding
_UNREAD: Final = """n_ctx resid_pdrop embd_pdrop summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn attention_softmax_in_fp32
    scale_attention_softmax_in_fp32 inference_runner max_batch_size max_sequence_length pad_key_length
    pre_allocate_kv_cache validate_runner_input""".split()


def gpt2_like(
    model_type: str,
    hf_class: str,
    heads: ConfigRule,
    tanh_gelu: str,
    nemo2: Nemo2,
    *,
    by_group: bool = False,
    transposed: bool = False,
    **more: Any,
) -> Architecture:
    """A GPT-2. ``heads`` says how many keys have, ``tanh_gelu`` what the model calls GELU by tanh."""
    attention = Attention(bias=ALWAYS, output_bias=ALWAYS, by_group=by_group)
    blocks = Blocks(LAYER, attention, Mlp(bias=ALWAYS), activation=None, transposed=transposed)
    config = standard(
        heads,
        GptInnerWidth(),
        Gelu("activation_function", tanh_gelu, tanh_gelu),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False),
        Unread(tuple(_UNREAD)),
        defaults=_DEFAULTS,
        keys=_KEYS,
        without=("attention_bias", "mlp_bias", "hidden_act", "rope_theta"),
    )
    ignored = tuple(f"{NAMES.layer}attn.{name}" for name in ("bias", "masked_bias"))
    return Architecture(
        (model_type,), hf_class, (Stack(NAMES, blocks),), config, nemo2, ignored=ignored, **more
    )
