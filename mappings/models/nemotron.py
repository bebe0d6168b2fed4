"""Nemotron-3, Nemotron-4 and Minitron: a ``NemotronForCausalLM``, with LayerNorm by 1 + weight, squared
ReLU without a gate, and the rotary embedding on half of each head.

Source: transformers/models/nemotron, nemo/collections/llm/gpt/model/nemotron.py.
"""

from ..blocks.place import LAYER_OF_1_PLUS
from ..blocks.stack import Blocks
from ..hf.fields import Unread
from ..hf.rope import PartialRope
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

NEMOTRON = llama_like(
    "nemotron",
    "NemotronForCausalLM",
    names={"gate": ""},
    blocks=Blocks(norm=LAYER_OF_1_PLUS, activation="relu2"),
    keys={"rms_norm_eps": "norm_eps"},
    defaults={
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "vocab_size": 256000,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "initializer_range": 0.0134,
    },
    config=(
        Unread(("kv_channels",)),  # of released models, beside head_dim or equal to its default
        PartialRope(default_factor=0.5),
    ),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.nemotron", "NemotronModel", "NemotronConfig"),
    nemo1=Nemo1(),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits with a stand-in for the norms",
        "real NeMo import and export",
    ),
)
