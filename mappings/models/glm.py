"""GLM-4 and GLM-Edge as transformers has them: a ``GlmForCausalLM``. NeMo builds it as a ChatGLM.

Source: transformers/models/glm, nemo/collections/llm/gpt/model/chatglm.py.
"""

from dataclasses import replace

from .. import blocks
from ..blocks import HF, NEMO
from ..families.chatglm_fields import CLASSES
from ..hf.fields import Dtype, Field, Fixed
from ..hf.rope import PartialRope
from ..rules import same
from ..table import Table
from .chatglm import BIASED

TABLE = Table(
    architecture="glm",
    hf_class="GlmForCausalLM",
    nemo=CLASSES,
    fields=(
        Field("num_hidden_layers", "num_layers", 40),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 13696),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 2, default_from="num_attention_heads"),
        Field("head_dim", "kv_channels", 128),
        Field("vocab_size", "vocab_size", 151552),
        Field("max_position_embeddings", "seq_length", 131072),
        Field("rms_norm_eps", "layernorm_epsilon", 1.5625e-07, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("attention_bias", "add_qkv_bias", True, kind=bool),
        Fixed("hidden_act", "silu"),
        PartialRope(default_factor=0.5),
        Dtype(),
    ),
    rules=(
        blocks.EMBEDDING,
        blocks.input_norm(),
        blocks.QKV,
        replace(blocks.QKV_BIAS, when=BIASED),
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
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
