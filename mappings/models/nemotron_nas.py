"""Llama-Nemotron Super and Ultra: a ``DeciLMForCausalLM``, whose class came with it: a Llama whose layers
differ in key heads and MLP sizes, and lack attention or MLP, or have a linear layer in its place.

Source: modeling_decilm.py of the released models, nemo/collections/llm/gpt/model/llama_nemotron.py,
megatron/core/models/gpt/heterogeneous. (Nano and 70B are plain Llamas.)
"""

from dataclasses import replace

from .. import blocks
from ..blocks import HF, NEMO
from ..nemo2.configs_llama import HETEROGENEOUS_SPEC, LLAMA_NEMOTRON_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, Llama3Scaling, NemoClasses, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..rules import same
from ..table import Module, Rule, Table
from . import nemotron_nas_fields
from .nemotron_nas_fields import EncodedBlocks

CLASS = "Llama33NemotronSuper49BConfig"


def of(layers: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple(replace(rule, layers=layers) for rule in rules)


def linear(nemo: str, hf: str, norm: str, also: str) -> tuple[Rule, Rule]:
    """A linear layer in place of attention or MLP, with the norm before it."""
    return (
        same(NEMO + nemo + ".layer_norm_weight", HF + norm, "hidden", also=(NEMO + also,)),
        same(NEMO + nemo + ".weight", HF + hf, "hidden_out hidden", cut="hidden_out"),
    )


TABLE = Table(
    architecture="nemotron-nas",
    hf_class="DeciLMForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.llama_nemotron",
        model="LlamaNemotronModel",
        config=CLASS,
        scaled_config=CLASS,
        defaults=LLAMA_NEMOTRON_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            Llama3Scaling(),
            EncodedBlocks(),
            NemoFixed("transformer_layer_spec", HETEROGENEOUS_SPEC),
        ),
    ),
    fields=nemotron_nas_fields.FIELDS,
    rules=(
        blocks.EMBEDDING,
        *of("full attention", blocks.input_norm(), blocks.QKV, blocks.PROJ),
        *of(
            "linear attention",
            *linear(
                "self_attention",
                "self_attn.linear_attn.weight",
                "input_layernorm.weight",
                "input_layernorm.weight",
            ),
        ),
        *of("full ffn", blocks.mlp_norm(), blocks.GATED_FC1, blocks.FC2),
        *of(
            "linear ffn",
            *linear(
                "mlp",
                "mlp.linear_mlp.weight",
                "post_attention_layernorm.weight",
                "pre_mlp_layernorm.weight",
            ),
        ),
        blocks.final_norm(),
        blocks.OUTPUT,
    ),
    modules=(
        *(replace(module, layers="full attention") for module in blocks.MODULES[:3]),
        Module(NEMO + "self_attention", layers="linear attention"),
        *(replace(module, layers="full ffn") for module in blocks.MODULES[3:5]),
        Module(NEMO + "mlp", layers="linear ffn"),
        blocks.MODULES[5],
    ),
    ignored=(blocks.INV_FREQ,),
    tied=blocks.TIED,
    sizes=nemotron_nas_fields.sizes,
    layer_sets=nemotron_nas_fields.layer_sets,
    kinds=nemotron_nas_fields.kinds,
    varied=nemotron_nas_fields.VARIED,
    verified=(
        "bit-equal",
        "logits of transformers' Llama layers",
        "megatron-core logits",
        "real NeMo import (with a stand-in for the released code), by hand",
    ),
)
