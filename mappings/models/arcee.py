"""Arcee (AFM-4.5B): a Llama whose MLP has no gate and squares its relu. Source: transformers/models/arcee."""

from ..blocks.stack import Blocks
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1

ARCEE = llama_like(
    "arcee",
    "ArceeForCausalLM",
    names={"gate": ""},
    blocks=Blocks(activation="relu2"),
    defaults={
        "hidden_size": 2560,
        "intermediate_size": 18432,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    nemo1=Nemo1(),
    proofs=("bit-equal", "transformers logits", "megatron-core logits"),
)
