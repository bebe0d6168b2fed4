"""Gemma and CodeGemma: a ``GemmaForCausalLM``, a tied Llama with wide heads, RMSNorm by 1 + weight, a
gated GELU by tanh, and embeddings that both sides scale when they run.

Source: transformers/models/gemma, nemo/collections/llm/gpt/model/gemma.py.
"""

from ..blocks.place import RMS_OF_1_PLUS
from ..blocks.stack import Blocks
from ..hf.fields import OneOf
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

BLOCKS = Blocks(norm=RMS_OF_1_PLUS, activation="gelu_pytorch_tanh", scaled_embedding=True)

GEMMA = llama_like(
    "gemma",
    "GemmaForCausalLM",
    blocks=BLOCKS,
    defaults={
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    config=(
        # the first files say "gelu" and mean tanh; transformers of all versions reads them so
        OneOf("hidden_act", ("gelu_pytorch_tanh", "gelu")),
        OneOf("hidden_activation", ("gelu_pytorch_tanh", None)),
        OneOf("use_bidirectional_attention", (None, False)),
    ),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.gemma", "GemmaModel", "GemmaConfig"),
    # NVIDIA's script adds the 1 (convert_gemma_hf_to_nemo.py); that for Gemma 2 does not
    nemo1=Nemo1(words={"apply_embedding_scaling": True}, plain_norms=True),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits with a stand-in for the norms",
        "real NeMo import, export of float32",
    ),
)
