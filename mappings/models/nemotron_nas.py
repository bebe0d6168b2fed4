"""Llama-Nemotron Super and Ultra: a ``DeciLMForCausalLM``, whose class came with it: a Llama whose layers
differ in key heads and MLP sizes, and lack attention or MLP, or have a linear layer in its place.

Source: configuration_decilm.py and modeling_decilm.py of the released models,
nemo/collections/llm/gpt/model/llama_nemotron.py, megatron/core/models/gpt/heterogeneous and
megatron/core/transformer/heterogeneous. (Nano and 70B are plain Llamas.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ...errors import UnsupportedConfig
from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.stack import Blocks
from ..hf.fields import Value
from ..hf.fields_gpt import AutoMap
from ..llama_like import llama_like
from ..nemo2 import classes
from ..nemo2.entry import Nemo2
from ..nemo2.fields import Llama3Scaling, NemoFixed
from ..nemo2.symbols import HETEROGENEOUS_SPEC
from ..rules import same
from ..sizes import attention_sizes
from ..table import Module, Rule

#: factors whose sizes differ between layers
VARYING_FACTORS: Final = frozenset(
    """group heads_per_group value_head head query_head ffn q_rows k_rows v_first qkv_rows""".split()
)
#: keys of a block's two parts, with the values that change nothing; None: read here
_KEYS: Final[Mapping[str, Mapping[str, tuple[Value, ...] | None]]] = {
    "attention": {
        "n_heads_in_group": None,
        "no_op": None,
        "replace_with_linear": None,
        "num_sink_tokens": (None, 0),
        "sparsify": (None,),
        "unshifted_sink": (None, False),
        "use_prefill_window_in_sink_attention": (None, False),
        "window_length": (None,),
    },
    "ffn": {"ffn_mult": None, "no_op": None, "replace_with_linear": None, "sparsify": (None,)},
}
_FIELD: Final = "heterogeneous_layers_config_encoded_json"


def check_blocks(blocks: Value, config: Mapping[str, Value], where: str) -> list[dict[str, Value]]:
    """``block_configs`` as they are, if every one of them is understood. Raises UnsupportedConfig."""
    layers = config["num_layers"]
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise UnsupportedConfig(f"{where} has no block for each of {layers} layers")
    for number, block in enumerate(blocks):
        if not isinstance(block, dict) or block.keys() != _KEYS.keys():
            raise UnsupportedConfig(f"{where}[{number}] is not a table of 'attention' and 'ffn'")
        for part, known in _KEYS.items():
            _check_part(block[part], known, f"{where}[{number}].{part}")
        _sizes_of(block, config, f"{where}[{number}]")
    return blocks


def _check_part(part: Value, known: Mapping[str, tuple[Value, ...] | None], where: str) -> None:
    if not isinstance(part, dict):
        raise UnsupportedConfig(f"{where} is not a table")
    for key, value in part.items():
        if key not in known:
            raise UnsupportedConfig(f"{where}.{key}={value!r} is not known")
        harmless = known[key]
        if harmless is not None and value not in harmless:
            raise UnsupportedConfig(f"{where}.{key}={value!r} is not supported")


def kind_of(part: Mapping[str, Value]) -> str:
    """What is there in a layer: ``no_op``, ``linear``, or ``full``."""
    if part.get("no_op"):
        return "no_op"
    return "linear" if part.get("replace_with_linear") else "full"


def _sizes_of(block: Mapping[str, Value], config: Mapping[str, Value], where: str = "") -> tuple[int, int]:
    """(num_query_groups, ffn_hidden_size) of a layer; 0 for a part that it lacks."""
    heads, attention, ffn = config["num_attention_heads"], block["attention"], block["ffn"]
    groups = size = 0
    if kind_of(attention) == "full":
        one = attention.get("n_heads_in_group")
        if not isinstance(one, int) or isinstance(one, bool) or one <= 0 or heads % one:
            raise UnsupportedConfig(
                f"{where}.attention.n_heads_in_group={one!r} does not divide {heads} heads"
            )
        groups = heads // one
    if kind_of(ffn) == "full":
        factor = ffn.get("ffn_mult")
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 0 < factor < 1e4:
            raise UnsupportedConfig(f"{where}.ffn.ffn_mult={factor!r} is no factor")
        size = int(2 * factor * config["hidden_size"] / 3)
        size = -(-size // 256) * 256
    return groups, size


def kinds(config: Mapping[str, Value]) -> list[str]:
    """For each layer the name of its sizes."""
    return ["{}x{}".format(*_sizes_of(block, config)) for block in config["block_configs"]]


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors, with those of each kind of layer."""
    plain = {**config, "num_query_groups": config["num_attention_heads"], "ffn_hidden_size": 1}
    found = {name: size for name, size in attention_sizes(plain).items() if name not in VARYING_FACTORS}
    found["hidden_out"] = config["hidden_size"]
    for block, kind in zip(config["block_configs"], kinds(config), strict=True):
        groups, ffn = _sizes_of(block, config)
        own = attention_sizes({**plain, "num_query_groups": groups or 1, "ffn_hidden_size": ffn})
        found |= {f"{name}.{kind}": own[name] for name in VARYING_FACTORS}
    return found


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    """The layers that have attention, a linear layer in its place, an MLP, a linear layer in its place."""
    blocks = config["block_configs"]
    return {
        f"{kind} {part}": frozenset(i for i, block in enumerate(blocks) if kind_of(block[part]) == kind)
        for part in _KEYS
        for kind in ("full", "linear")
    }


@dataclass(frozen=True, slots=True)
class BlockConfigs:
    """``block_configs``; ``num_key_value_heads`` and ``intermediate_size`` are null beside them."""

    hf_keys = frozenset({"block_configs", "num_key_value_heads", "intermediate_size"})
    fields = frozenset({"block_configs"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        for key in ("num_key_value_heads", "intermediate_size"):
            if hf.get(key) is not None:
                raise UnsupportedConfig(f"config.json: {key}={hf[key]!r} beside block_configs, which decide")
        blocks = check_blocks(hf.get("block_configs"), config, "config.json: block_configs")
        config["block_configs"] = blocks

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf |= {
            "block_configs": config["block_configs"],
            "num_key_value_heads": None,
            "intermediate_size": None,
        }


@dataclass(frozen=True, slots=True)
class EncodedBlocks:
    """``block_configs`` as JSON in a field. ``num_query_groups`` and ``ffn_hidden_size`` of the model are
    those of its first layer that has them; each layer has its own."""

    names = frozenset(
        {_FIELD, "heterogeneous_layers_config_path", "num_query_groups", "ffn_hidden_size"}
        | {"heterogeneous_block_specs"}
    )

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = fields.get(_FIELD)
        try:
            decoded = json.loads(given) if isinstance(given, str) else None
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, dict):
            raise UnsupportedConfig(
                f"the NeMo config says {_FIELD}={str(given)[:60]!r}, which is no JSON table"
            )
        where = f"{_FIELD}: block_configs"
        config["block_configs"] = check_blocks(decoded.get("block_configs"), config, where)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        blocks = config["block_configs"]
        found = [_sizes_of(block, config) for block in blocks]
        fields[_FIELD] = json.dumps({"block_configs": blocks})
        fields["heterogeneous_layers_config_path"] = None
        fields["num_query_groups"] = next((groups for groups, _ in found if groups), None)
        fields["ffn_hidden_size"] = next((ffn for _, ffn in found if ffn), None)


CLASS: Final = "Llama33NemotronSuper49BConfig"
LAYER: Final = "decoder.layers.{layer}."
#: what a linear layer stands in place of -> Hugging Face's names of it and of the norm before it, Megatron's
#: other name of that norm
LINEAR: Final = {
    ("self_attention", "linear attention"): ("self_attn.linear_attn", "input_layernorm", "input_layernorm"),
    ("mlp", "linear ffn"): ("mlp.linear_mlp", "post_attention_layernorm", "pre_mlp_layernorm"),
}


def linear(part: str, layers: str, hf: str, norm: str, other_norm: str) -> tuple[Rule, Rule]:
    """A linear layer in place of attention or MLP, with the norm before it."""
    nemo, there = LAYER + part, "model.layers.{layer}."
    before = same(
        f"{nemo}.layer_norm_weight",
        f"{there}{norm}.weight",
        "hidden",
        other_names=(f"{LAYER}{other_norm}.weight",),
    )
    itself = same(f"{nemo}.weight", f"{there}{hf}.weight", "hidden_out hidden", cut="hidden_out")
    return replace(before, layers=layers), replace(itself, layers=layers)


#: a layer of each kind
SAMPLE: Final = [
    {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 2.5}},
    {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
    {"attention": {"no_op": True}, "ffn": {"no_op": True}},
]

NEMOTRON_NAS = llama_like(
    "nemotron-nas",
    "DeciLMForCausalLM",
    blocks=Blocks(attention=Attention(on="full attention"), mlp=Mlp(on="full ffn")),
    config=(
        BlockConfigs(),
        AutoMap("configuration_decilm.DeciLMConfig", "modeling_decilm.DeciLMForCausalLM"),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.llama_nemotron",
        "LlamaNemotronModel",
        CLASS,
        (Llama3Scaling(), EncodedBlocks(), NemoFixed("transformer_layer_spec", HETEROGENEOUS_SPEC)),
        scaled_config=CLASS,
        defaults=classes.family("Llama33NemotronSuper49BConfig", "Llama31NemotronUltra253BConfig"),
    ),
    extra=tuple(rule for where, names in LINEAR.items() for rule in linear(*where, *names)),
    extra_modules=tuple(Module(LAYER + part, layers) for part, layers in LINEAR),
    sizes=sizes,
    layer_sets=layer_sets,
    kinds=kinds,
    varying_factors=VARYING_FACTORS,
    samples=({"num_hidden_layers": len(SAMPLE), "block_configs": SAMPLE},),
    proofs=(
        "bit-equal",
        "logits of transformers' Llama layers",
        "megatron-core logits",
        "real NeMo import (with a stand-in for the released code), by hand",
    ),
)
