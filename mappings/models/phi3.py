"""Phi-3, 3.5 mini and Phi-4: a ``Phi3ForCausalLM``, a Llama with q, k, v in one tensor, gate and up in
another, and the rotary embedding on a part of each head.

Source: transformers/models/phi3, nemo/collections/llm/gpt/model/phi3mini.py. The "longrope" scaling of
the 128k models has no counterpart in NeMo and is refused.
"""

from ..hf.fields import Nullable, Unread
from ..hf.rope import PartialRope
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

PHI3 = llama_like(
    "phi3",
    "Phi3ForCausalLM",
    names={
        **dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj"),
        **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
    },
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    config=(
        Nullable("sliding_window", "sliding_window"),
        Unread(("original_max_position_embeddings", "embd_pdrop", "resid_pdrop")),
        PartialRope(),
    ),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.phi3mini", "Phi3Model", "Phi3Config"),
    nemo1=Nemo1(read_as="llama"),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import, export of float32",
    ),
)
