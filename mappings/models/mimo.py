"""MiMo 7B: a ``MiMoForCausalLM``, whose class came with it: a Qwen 2 with layers that predict further tokens,
which have a place of their own in Hugging Face and take embedding and hidden state the other way round.

Source: modeling_mimo.py of the released models; megatron/core/transformer/multi_token_prediction.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..blocks import MODULES
from ..hf.fields import Fixed, Value
from ..hf.fields_gpt import AutoMap
from ..mtp import (
    FURTHER,
    FURTHER_HF,
    FurtherFields,
    FurtherLayers,
    further_modules,
    further_rules,
    further_sizes,
)
from ..nemo2.fields import with_rules
from ..sizes import attention_sizes
from ..table import Part, Rule
from . import qwen2

HF = "model.mtp_layers.{depth}."
#: DeepSeek's names of norms, and MiMo's
NORMS = (("enorm", "token_layernorm"), ("hnorm", "hidden_layernorm"), ("shared_head.norm", "final_layernorm"))
PROJECTION = HF + "input_proj.weight"


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return attention_sizes(config) | further_sizes(config) | {"pair": 2, "column": config["hidden_size"]}


def named(rule: Rule) -> Rule:
    """A rule of these layers with MiMo's names."""
    parts = []
    for part in rule.parts:
        name = part.hf.replace(FURTHER_HF, HF)
        for theirs, ours in NORMS:
            name = name.replace(HF + theirs, HF + ours)
        parts.append(replace(part, hf=name))
    return replace(rule, parts=tuple(parts))


#: Megatron's projection takes the embedding first, MiMo's the hidden state
JOINED = Rule(
    FURTHER + "eh_proj.weight",
    "hidden (pair column)",
    (
        Part(PROJECTION, "hidden column", (("pair", 1, 1),), ((1, 0, "hidden", "joined"),)),
        Part(PROJECTION, "hidden column", (("pair", 0, 1),), ((1, "hidden", "hidden", "joined"),)),
    ),
    cut="hidden",
)
RULES = qwen2.TABLE.rules
TABLE = replace(
    qwen2.TABLE,
    architecture="mimo",
    hf_class="MiMoForCausalLM",
    nemo=replace(
        qwen2.TABLE.nemo,
        rules=with_rules(qwen2.TABLE.nemo.rules, FurtherFields()),
        marks=(("num_moe_experts", False),),  # without further layers it is a Qwen 2, unless a manifest tells
    ),
    fields=(
        *qwen2.TABLE.fields,
        FurtherLayers(default=0),
        Fixed("attention_bias", True),
        Fixed("use_mrope", False),
        AutoMap("configuration_mimo.MiMoConfig", "modeling_mimo.MiMoForCausalLM"),
    ),
    rules=(*RULES, *(named(rule) for rule in further_rules(RULES) if "eh_proj" not in rule.nemo), JOINED),
    modules=(*MODULES, *further_modules(MODULES)),
    sizes=sizes,
    further="model.mtp_layers.",
    verified=(
        "bit-equal",
        "logits of transformers' Qwen2",
        "megatron-core logits, of further tokens too",
        "real NeMo load and save, by hand",
    ),
)
