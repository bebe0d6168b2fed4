"""GPT-NeoX: a ``GPTNeoXForCausalLM``, with the rotary embedding on a quarter of each head.

Source: transformers/models/gpt_neox, nemo/collections/llm/gpt/model/base.py. Pythia and GPT-NeoX-20B run
attention and MLP side by side (``use_parallel_residual``). Neither NeMo 2 nor megatron-core has such
layers, so only models that run one after the other (rinna's and LINE's Japanese ones) have a counterpart.
"""

from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.place import ALWAYS, LAYER
from ..blocks.stack import Blocks
from ..hf.fields import Fixed, Unread
from ..hf.fields_gpt import Gelu, NeoXRope, OnlyValue, PlainHeads
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

HF = "gpt_neox.layers.{layer}."
PARALLEL = "NeMo 2 and megatron-core have no layers that run attention and MLP side by side"

GPT_NEOX = llama_like(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    names={
        "layer": HF,
        "embedding": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        **dict.fromkeys(("query", "key", "value"), "attention.query_key_value"),
        "attention_output": "attention.dense",
        "gate": "",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    blocks=Blocks(
        norm=LAYER,
        attention=Attention(bias=ALWAYS, output_bias=ALWAYS, by_group=True),
        mlp=Mlp(bias=ALWAYS),
        activation=None,
    ),
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "num_hidden_layers": 44,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 64,
        "vocab_size": 50432,
        "layer_norm_eps": 1e-5,
    },
    config=(
        PlainHeads(),
        OnlyValue("use_parallel_residual", False, default=True, why=PARALLEL),
        Gelu("hidden_act", "gelu", "gelu_fast"),
        Fixed("attention_bias", True),
        Unread(("hidden_dropout", "classifier_dropout")),
        NeoXRope(),
    ),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.base", "GPTModel", "GPTConfig"),
    ignored=tuple(HF + f"attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
    spellings=((r"^lm_head\.", "embed_out."),),
    nemo1=Nemo1(read_as="starcoder2"),
    samples=({"use_parallel_residual": False},),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
