"""Phi-3, 3.5 mini and Phi-4: a ``Phi3ForCausalLM``, a Llama with q, k, v in one tensor, gate and up in
another, and the rotary embedding on a part of each head.

Source: transformers/models/phi3, nemo/collections/llm/gpt/model/phi3mini.py. The "longrope" scaling of
the 128k models has no counterpart in NeMo and is refused.
"""

from .. import blocks
from ..blocks import HF, NEMO
from ..hf.fields import Dtype, Field, Fixed, HeadDim, Nullable, Unread
from ..hf.rope import PartialRope
from ..nemo2.configs_dense import PHI3_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, Same, Window, with_rules
from ..rules import packed_qkv, same
from ..table import Table

TABLE = Table(
    architecture="phi3",
    hf_class="Phi3ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.phi3mini",
        model="Phi3Model",
        config="Phi3Config",
        defaults=PHI3_DEFAULTS,
        rules=with_rules(NEMO_FIELDS, NO_BIASES, Window(), Same("rotary_percent")),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 3072),
        Field("intermediate_size", "ffn_hidden_size", 8192),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 32064),
        Field("max_position_embeddings", "seq_length", 4096),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Nullable("sliding_window", "sliding_window"),
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", False),
        Unread(("original_max_position_embeddings", "embd_pdrop", "resid_pdrop")),
        PartialRope(),
        Dtype(),
    ),
    rules=(
        blocks.EMBEDDING,
        blocks.input_norm(),
        packed_qkv(NEMO + "self_attention.linear_qkv.weight", HF + "self_attn.qkv_proj.weight"),
        blocks.PROJ,
        blocks.mlp_norm(),
        same(NEMO + "mlp.linear_fc1.weight", HF + "mlp.gate_up_proj.weight", "(half ffn) hidden", cut="ffn"),
        blocks.FC2,
        blocks.final_norm(),
        blocks.OUTPUT,
    ),
    modules=blocks.MODULES,
    ignored=(blocks.INV_FREQ,),
    tied=blocks.TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import, export of float32",
    ),
)
