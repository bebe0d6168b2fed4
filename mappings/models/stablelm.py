"""StableLM 3B and StableLM 2 1.6B: a ``StableLmForCausalLM``, a Llama with LayerNorm and the rotary embedding
on a quarter of each head. The 12B model, which runs attention and MLP side by side and normalises each head
of q and k, is refused.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/stablelm, nemo/collections/llm/gpt/model/base.py.
"""

from ..blocks.attention import Attention
from ..blocks.place import LAYER, There
from ..blocks.stack import Blocks
from ..hf.fields import Field, Fixed, Unread
from ..hf.fields_gpt import EvenHeads
from ..hf.rope import PartialRope
from ..llama_like import llama_like

STABLELM = llama_like(
    "stablelm",
    "StableLmForCausalLM",
    blocks=Blocks(norm=LAYER, attention=Attention(bias=There((("add_qkv_bias", True),)))),
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_key_value_heads": 32,
        "vocab_size": 50304,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
    },
    config=(
        EvenHeads(),
        Field("use_qkv_bias", "add_qkv_bias", False, kind=bool),
        Fixed("use_parallel_residual", False),
        Fixed("qk_layernorm", False),
        Unread(("hidden_dropout",)),
        PartialRope(default_factor=0.25),
    ),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
