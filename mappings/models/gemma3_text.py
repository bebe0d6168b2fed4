"""Gemma 3 without its eyes: a ``Gemma3ForCausalLM``, a Gemma 2 without soft caps that normalizes q and k,
with a window and another rotary base on most layers.

Source: transformers/models/gemma3, nemo/collections/llm/gpt/model/gemma3.py. NeMo takes 1e-05 for the
epsilon of the norms after attention and MLP, and no field changes that.
"""

from dataclasses import replace

from ..hf.fields import Field, Fixed, OneOf, Unread, WindowPattern
from ..hf.rope import TwoRopes
from ..llama_like import llama_like
from ..nemo2 import classes
from ..nemo2.entry import Nemo2
from ..nemo2.fields import Gemma3Attention, NemoFixed
from ..nemo2.symbols import GEMMA3_SPEC
from .gemma import BLOCKS
from .gemma2 import DEFAULTS, NAMES
from .qwen3 import HEAD_NORMS

GEMMA3_TEXT = llama_like(
    "gemma3_text",
    "Gemma3ForCausalLM",
    names={**NAMES, **HEAD_NORMS},
    blocks=replace(BLOCKS, whole_every="window_pattern", local_rope=True),
    defaults={**DEFAULTS, "vocab_size": 262208, "max_position_embeddings": 131072},
    config=(
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        WindowPattern(4096),
        Fixed("attn_logit_softcapping", None),
        Fixed("final_logit_softcapping", None),
        Fixed("hidden_activation", "gelu_pytorch_tanh"),
        OneOf("use_bidirectional_attention", (False, None)),
        Unread(("cache_implementation",)),
        TwoRopes(),
    ),
    without=("hidden_act",),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.gemma3",
        "Gemma3Model",
        "Gemma3Config1B",
        (
            NemoFixed("transformer_layer_spec", GEMMA3_SPEC),
            NemoFixed("is_vision_language", False, written=True),
            NemoFixed("qk_layernorm", False),  # its layers normalize heads, whatever this says
            Gemma3Attention(),
        ),
        # not their base, which NeMo itself cannot build for want of rope_scaling_factor
        defaults=classes.family(*(f"Gemma3Config{size}B" for size in (1, 4, 12, 27))),
    ),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits with stand-ins for NeMo's layers",
        "real NeMo export of float32, by hand",
    ),
)
