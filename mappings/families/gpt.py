"""What the tables of GPT-2 and GPTBigCode share: ``transformer.h``, learned positions, biases everywhere.

Source: transformers/models/gpt2 and gpt_bigcode, nemo/collections/llm/gpt/model/base.py and starcoder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..blocks import NEMO, UNTIED, layer_norms
from ..hf.fields import ConfigRule, Dtype, Field, Fixed, Unread, Value
from ..hf.fields_gpt import Gelu, Inner
from ..nemo2.configs_dense import GELU, TANH_GELU
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import FusedGelu, Unused, with_rules
from ..rules import same, vocabulary
from ..sizes import attention_sizes
from ..table import Rule

HF: Final = "transformer.h.{layer}."
#: LayerNorm, biases, and no gate
PLAIN_LAYERS: Final = (
    NemoFixed("normalization", "LayerNorm", written=True),
    NemoFixed("gated_linear_unit", False, written=True),
    NemoFixed("add_bias_linear", True, written=True),
    FusedGelu(GELU, TANH_GELU),
)
NEMO_RULES: Final = with_rules(
    NEMO_FIELDS,
    *PLAIN_LAYERS,
    NemoFixed("position_embedding_type", "learned_absolute", written=True),
    Unused(("rotary_base", "rotary_percent", "seq_len_interpolation_factor")),
)
#: of generation, of training, of heads for other tasks, of code that trained a model, and of rounding
_UNREAD: Final = """n_ctx resid_pdrop embd_pdrop summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn attention_softmax_in_fp32
    scale_attention_softmax_in_fp32 inference_runner max_batch_size max_sequence_length pad_key_length
    pre_allocate_kv_cache validate_runner_input""".split()
SPELLINGS: Final = ((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),)  # of files without a head
IGNORED: Final = (HF + "attn.bias", HF + "attn.masked_bias")
TIED: Final = (
    ("lm_head.weight", "transformer.wte.weight"),
    ("output_layer.weight", "embedding.word_embeddings.weight"),
)


def fields(heads: ConfigRule, tanh_gelu: str) -> tuple[ConfigRule, ...]:
    """Rules for config.json, with transformers' defaults."""
    return (
        Field("n_layer", "num_layers", 12),
        Field("n_embd", "hidden_size", 768),
        Field("n_head", "num_attention_heads", 12),
        heads,
        Inner(),
        Field("vocab_size", "vocab_size", 50257),
        Field("n_positions", "seq_length", 1024),
        Field("layer_norm_epsilon", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attn_pdrop", "attention_dropout", 0.1, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
        Gelu("activation_function", tanh_gelu, tanh_gelu),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False),
        Unread(tuple(_UNREAD)),
        Dtype(),
    )


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return attention_sizes(config) | {"positions": config["seq_length"]}


def rules(*matrices: Rule) -> tuple[Rule, ...]:
    """All rules, with those of the matrices of a layer."""
    return (
        vocabulary("embedding.word_embeddings.weight", "transformer.wte.weight"),
        same("embedding.position_embeddings.weight", "transformer.wpe.weight", "positions hidden"),
        *layer_norms("input", HF + "ln_1"),
        *matrices,
        same(NEMO + "self_attention.linear_proj.bias", HF + "attn.c_proj.bias", "hidden"),
        *layer_norms("mlp", HF + "ln_2"),
        same(NEMO + "mlp.linear_fc1.bias", HF + "mlp.c_fc.bias", "ffn", cut="ffn"),
        same(NEMO + "mlp.linear_fc2.bias", HF + "mlp.c_proj.bias", "hidden"),
        *layer_norms("final", "transformer.ln_f"),
        vocabulary("output_layer.weight", "lm_head.weight", when=UNTIED),
    )
