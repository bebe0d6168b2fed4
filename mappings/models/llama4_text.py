"""The text model of Llama 4: experts on all or some layers, a shared expert, layers without rope.

NeMo's Llama 4 agrees with transformers up to ``attention_chunk_size`` tokens: beyond that NeMo cuts into
chunks also the layers without rope, which transformers does not.

Source: transformers/models/llama4, nemo/collections/llm/gpt/model/llama.py and llama4_utils.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..blocks import FC2, GATED_FC1, INV_FREQ, TIED, mlp_norm
from ..hf.fields import Value
from ..rules_moe import (
    AFTER,
    BEFORE,
    EXPERT_NORM,
    moe_sizes,
    renamed,
    router,
    shared_experts,
    shared_modules,
    sparse_modules,
    stacked_experts,
)
from ..table import Table
from . import llama4_fields


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return {**moe_sizes(config), "shared_ffn": config["moe_ffn_hidden_size"]}


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    freq, layers = config["moe_layer_freq"], range(config["num_layers"])
    sparse = frozenset(layer for layer in layers if freq == 1 or freq[layer])
    return {"sparse": sparse, "dense": frozenset(layers) - sparse}


def alike(config: Mapping[str, Value]) -> bool:
    return bool(config["moe_layer_freq"] == 1)


TABLE = Table(
    architecture="llama4_text",
    hf_class="Llama4ForCausalLM",
    nemo=llama4_fields.CLASSES,
    fields=llama4_fields.FIELDS,
    rules=(
        *BEFORE,
        *(
            replace(renamed(rule, "mlp.", "feed_forward."), layers="dense")
            for rule in (mlp_norm(), GATED_FC1, FC2)
        ),
        replace(EXPERT_NORM, layers="sparse", also=()),
        router("feed_forward.router.weight", layers="sparse"),
        *stacked_experts("feed_forward.experts.", "half moe_ffn", layers="sparse"),
        *shared_experts("feed_forward.shared_expert", layers="sparse"),
        *AFTER,
    ),
    modules=(*sparse_modules(), *shared_modules()),
    sizes=sizes,
    layer_sets=layer_sets,
    alike=alike,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (up to attention_chunk_size tokens)",
    ),
)
