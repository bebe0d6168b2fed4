"""GLM-4 and GLM-Edge as transformers has them: a ``GlmForCausalLM``. NeMo builds it as a ChatGLM.

Source: transformers/models/glm, nemo/collections/llm/gpt/model/chatglm.py.
"""

from dataclasses import replace

from ..hf.fields import Field
from ..hf.rope import PartialRope
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from .chatglm import BLOCKS, NEMO2

NAMES = dict.fromkeys(("gate", "up"), "mlp.gate_up_proj")
DEFAULTS = {
    "num_hidden_layers": 40,
    "intermediate_size": 13696,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151552,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
}
CONFIG = (Field("attention_bias", "add_qkv_bias", True, kind=bool), PartialRope(default_factor=0.5))

GLM = llama_like(
    "glm",
    "GlmForCausalLM",
    names=NAMES,
    blocks=BLOCKS,
    defaults=DEFAULTS,
    config=CONFIG,
    nemo2=replace(NEMO2, read_as="chatglm"),
    nemo1=Nemo1(),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
