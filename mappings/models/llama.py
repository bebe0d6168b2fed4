"""Llama 1, 2, 3, 3.1, 3.2, 3.3, CodeLlama, TinyLlama, SmolLM2 and what else is a ``LlamaForCausalLM``.

Source: transformers/models/llama, megatron/core/models/gpt, nemo/collections/llm/gpt/model/llama.py.
"""

from dataclasses import replace

from .. import blocks
from ..blocks import HF, NEMO
from ..hf.fields import Biases, Dtype, Field, Fixed, HeadDim
from ..hf.rope import Rope
from ..nemo2.configs import LLAMA_DEFAULTS
from ..nemo2.configs_llama import NANO_DEFAULTS
from ..nemo2.fields import NemoClasses
from ..rules import gated, same
from ..table import Table

BIASES = (("add_bias_linear", True),)
ATTENTION_BIAS = (("attention_bias", True),)
MLP_BIAS = (("mlp_bias", True),)

TABLE = Table(
    architecture="llama",
    hf_class="LlamaForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.llama",
        model="LlamaModel",
        config="LlamaConfig",
        scaled_config="Llama31Config",
        defaults={**LLAMA_DEFAULTS, **NANO_DEFAULTS},
        modules=("nemo.collections.llm.gpt.model.llama_nemotron",),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 11008),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "seq_length", 2048),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Biases(),
        Fixed("hidden_act", "silu"),
        Fixed("rope_interleaved", False),
        Rope(),
        Dtype(),
    ),
    rules=(
        blocks.EMBEDDING,
        blocks.input_norm(),
        blocks.QKV,
        replace(blocks.QKV_BIAS, when=BIASES, hf_when=ATTENTION_BIAS),
        blocks.PROJ,
        same(
            NEMO + "self_attention.linear_proj.bias",
            HF + "self_attn.o_proj.bias",
            "hidden",
            when=BIASES,
            hf_when=ATTENTION_BIAS,
        ),
        blocks.mlp_norm(),
        blocks.GATED_FC1,
        gated(
            NEMO + "mlp.linear_fc1.bias",
            HF + "mlp.gate_proj.bias",
            HF + "mlp.up_proj.bias",
            bias=True,
            when=BIASES,
            hf_when=MLP_BIAS,
        ),
        blocks.FC2,
        same(
            NEMO + "mlp.linear_fc2.bias",
            HF + "mlp.down_proj.bias",
            "hidden",
            when=BIASES,
            hf_when=MLP_BIAS,
        ),
        blocks.final_norm(),
        blocks.OUTPUT,
    ),
    modules=blocks.MODULES,
    ignored=(blocks.INV_FREQ,),
    tied=blocks.TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
