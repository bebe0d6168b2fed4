"""Nemotron-H and Nemotron Nano v2: Mamba 2, attention and MLP layers by a pattern, without positions.

transformers holds the steps of its mixers above ``time_step_min``, which Megatron does not; both compute
the same unless a step falls below it. Layers of experts (Nemotron 3, ``E``) NeMo 2 does not know.

Source: see :mod:`nemoconv.mappings.families.mamba`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..blocks import NEMO, QKV
from ..families import mamba
from ..hf.fields import Value
from ..rules import same, vocabulary
from ..rules_moe import renamed
from ..sizes import attention_sizes
from ..table import Module, Rule, Table
from . import nemotron_h_fields


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return attention_sizes(config) | mamba.sizes(config)


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    pattern = config["hybrid_override_pattern"]
    return {
        kind: frozenset(layer for layer, found in enumerate(pattern) if found == letter)
        for letter, kind in nemotron_h_fields.KINDS.items()
    }


def _of(layers: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple(replace(rule, layers=layers) for rule in rules)


TABLE = Table(
    architecture="nemotron_h",
    hf_class="NemotronHForCausalLM",
    nemo=nemotron_h_fields.CLASSES,
    fields=nemotron_h_fields.FIELDS,
    rules=(
        mamba.EMBEDDING,
        *mamba.mixer("mamba"),
        *_of(
            "attention",
            same(NEMO + "self_attention.linear_qkv.layer_norm_weight", mamba.HF + "norm.weight", "hidden"),
            renamed(QKV, "model.layers.{layer}.self_attn", mamba.HF + "mixer"),
            same(
                NEMO + "self_attention.linear_proj.weight",
                mamba.HF + "mixer.o_proj.weight",
                "hidden (group query_head head_dim)",
                cut="group",
            ),
        ),
        *_of(
            "mlp",
            same(NEMO + "mlp.linear_fc1.layer_norm_weight", mamba.HF + "norm.weight", "hidden"),
            same(NEMO + "mlp.linear_fc1.weight", mamba.HF + "mixer.up_proj.weight", "ffn hidden", cut="ffn"),
            same(
                NEMO + "mlp.linear_fc2.weight", mamba.HF + "mixer.down_proj.weight", "hidden ffn", cut="ffn"
            ),
        ),
        mamba.FINAL_NORM,
        vocabulary(
            "output_layer.weight", "lm_head.weight", when=(("share_embeddings_and_output_weights", False),)
        ),
    ),
    modules=(
        *mamba.modules("mamba"),
        *(
            Module(f"{NEMO}self_attention.{name}", layers="attention")
            for name in ("core_attention", "linear_proj", "linear_qkv")
        ),
        *(Module(f"{NEMO}mlp.linear_{name}", layers="mlp") for name in ("fc1", "fc2")),
        *mamba.END,
    ),
    sizes=sizes,
    layer_sets=layer_sets,
    spellings=mamba.SPELLINGS,
    tied=mamba.TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (torch in place of its CUDA kernels)",
    ),
)
