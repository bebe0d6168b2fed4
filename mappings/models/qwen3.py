"""Qwen 3 dense models: a ``Qwen3ForCausalLM``, a Llama that normalizes each head of q and k.

Source: transformers/models/qwen3, nemo/collections/llm/gpt/model/qwen3.py.
"""

from ..hf.fields import FullAttention
from ..llama_like import llama_like
from ..nemo1.entry import BLOCK_SPEC, Nemo1
from ..nemo2 import classes
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoLength
from .qwen2 import DEFAULTS

HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}

QWEN3 = llama_like(
    "qwen3",
    "Qwen3ForCausalLM",
    names=HEAD_NORMS,
    defaults={**DEFAULTS, "head_dim": 128},
    config=(FullAttention(),),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.qwen3",
        "Qwen3Model",
        "Qwen3Config",
        (NemoLength(),),
        # not the mixtures of experts of the same module
        defaults=classes.family("Qwen3Config", without=("Qwen3MoEConfig",)),
    ),
    nemo1=Nemo1(written=BLOCK_SPEC),
    proofs=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
