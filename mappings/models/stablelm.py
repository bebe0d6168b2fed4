"""StableLM 3B and StableLM 2 1.6B: a ``StableLmForCausalLM``, a Llama with LayerNorm and the rotary embedding
on a quarter of each head. The 12B model, which runs attention and MLP side by side and normalises each head
of q and k, is refused.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/stablelm, nemo/collections/llm/gpt/model/base.py.
"""

from dataclasses import replace

from .. import blocks
from ..blocks import HF, INV_FREQ, MODULES, TIED, layer_norms
from ..families.plain_gpt import plain_gpt
from ..hf.fields import Dtype, Field, Fixed, Unread
from ..hf.fields_gpt import EvenHeads
from ..hf.rope import PartialRope
from ..nemo2.fields import Same
from ..table import Table

TABLE = Table(
    architecture="stablelm",
    hf_class="StableLmForCausalLM",
    nemo=plain_gpt(Same("rotary_percent"), Same("add_qkv_bias"), normalization="LayerNorm", marks=()),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 2560),
        Field("intermediate_size", "ffn_hidden_size", 6912),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 32),
        EvenHeads(),
        Field("vocab_size", "vocab_size", 50304),
        Field("max_position_embeddings", "seq_length", 4096),
        Field("layer_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("use_qkv_bias", "add_qkv_bias", False, kind=bool),
        Fixed("use_parallel_residual", False),
        Fixed("qk_layernorm", False),
        Fixed("hidden_act", "silu"),
        Unread(("hidden_dropout",)),
        PartialRope(default_factor=0.25),
        Dtype(),
    ),
    rules=(
        blocks.EMBEDDING,
        *layer_norms("input", HF + "input_layernorm"),
        blocks.QKV,
        replace(blocks.QKV_BIAS, when=(("add_qkv_bias", True),)),
        blocks.PROJ,
        *layer_norms("mlp", HF + "post_attention_layernorm"),
        blocks.GATED_FC1,
        blocks.FC2,
        *layer_norms("final", "model.norm"),
        blocks.OUTPUT,
    ),
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
