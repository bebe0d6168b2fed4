"""Llama 1, 2, 3, 3.1, 3.2, 3.3, CodeLlama, TinyLlama, SmolLM2 and what else is a ``LlamaForCausalLM``.

Source: transformers/models/llama, megatron/core/models/gpt, nemo/collections/llm/gpt/model/llama.py.
"""

from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.place import There
from ..blocks.stack import Blocks
from ..hf.fields import Biases, Fixed
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2 import classes
from ..nemo2.entry import Nemo2

#: Megatron has all biases or none: those that Hugging Face lacks are zeros there
BIASES = (("add_bias_linear", True),)
OF_ATTENTION, OF_MLP = There(BIASES, (("attention_bias", True),)), There(BIASES, (("mlp_bias", True),))

LLAMA = llama_like(
    "llama",
    "LlamaForCausalLM",
    blocks=Blocks(attention=Attention(bias=OF_ATTENTION, output_bias=OF_ATTENTION), mlp=Mlp(bias=OF_MLP)),
    config=(Biases(), Fixed("rope_interleaved", False)),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.llama",
        "LlamaModel",
        "LlamaConfig",
        scaled_config="Llama31Config",
        modules=("nemo.collections.llm.gpt.model.llama_nemotron",),
        # not Llama 4, a mixture of experts with other layers
        defaults=classes.family(
            "LlamaConfig",
            "Llama31NemotronNano8BConfig",
            "Llama31Nemotron70BConfig",
            without=("Llama4Config",),
        ),
    ),
    nemo1=Nemo1(),
    proofs=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
