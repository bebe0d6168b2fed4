"""Qwen 2 and 2.5 dense models: a ``Qwen2ForCausalLM``, a Llama with biases on q, k and v only.

Source: transformers/models/qwen2, nemo/collections/llm/gpt/model/qwen2.py.
"""

from ..blocks.attention import Attention
from ..blocks.place import ALWAYS
from ..blocks.stack import Blocks
from ..hf.fields import FullAttention
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

#: transformers' defaults
DEFAULTS = {
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}

QWEN2 = llama_like(
    "qwen2",
    "Qwen2ForCausalLM",
    blocks=Blocks(attention=Attention(bias=ALWAYS)),
    defaults=DEFAULTS,
    config=(FullAttention(),),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.qwen2", "Qwen2Model", "Qwen2Config"),
    nemo1=Nemo1(),
    proofs=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
