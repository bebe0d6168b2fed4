"""Mistral 7B, Mistral-NeMo, Mistral Large: a ``MistralForCausalLM``, a Llama with a sliding window.

Source: transformers/models/mistral, nemo/collections/llm/gpt/model/mistral.py. A window of w tokens
there counts the token itself; Megatron's ``window_size`` counts those before it, so it is w - 1. NeMo's
own importer writes w, one too many; such a checkpoint is read as the w + 1 that NeMo computes.
"""

from ..hf.fields import Nullable
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

MISTRAL = llama_like(
    "mistral",
    "MistralForCausalLM",
    defaults={"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
    config=(Nullable("sliding_window", "sliding_window", 4096),),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.mistral", "MistralModel", "MistralConfig7B"),
    nemo1=Nemo1(read_as="llama"),
    proofs=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
