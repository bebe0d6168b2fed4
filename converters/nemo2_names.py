"""How torch_dist names and stacks what a table names one by one.

Megatron gives a homogeneous model's tensors a leading axis for the layers, and experts one more:
``decoder.layers.7.mlp.experts.local_experts.3.linear_fc2.weight`` is row [7, 3] of
``decoder.layers.mlp.experts.experts.linear_fc2.weight``. A model whose layers differ keeps the layer in
the name. Source: megatron/core/transformer/transformer_block.py, ``sharded_state_dict``, and moe/experts.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: what the names of stored tensors begin with in NeMo 2
PREFIX: Final = "module."
#: what the names of TransformerEngine's state objects end with
EXTRA_STATE: Final = "._extra_state"
#: layers times experts in one key: Kimi K2 has 61 x 384
MAX_STACKED: Final = 1 << 20

#: a stored key, the lengths of its leading axes, and an index on them
Place = tuple[str, tuple[int, ...], tuple[int, ...]]

_LAYER = re.compile(r"((?:decoder|encoder)\.layers)\.(\d+)\.(.+)")
_STACKED = re.compile(r"((?:decoder|encoder)\.layers)\.(?!\d+\.)(.+)")
_EXPERT = re.compile(r"(.+\.experts)\.local_experts\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"(.+\.experts)\.experts\.(?!\d+\.)(.+)")
_ONE_EXPERT = re.compile(r"(.+\.experts)\.experts\.(\d+)\.(.+)")
_GROUPED = re.compile(r"(.+\.mlp\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)")


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key and the index on its leading axes, (layer, expert), where it has such axes."""

    name: str
    index: tuple[int, ...]


def stored_key(name: str, *, stacked: bool) -> Key:
    """Where a tensor of one layer (and expert) is stored; ``stacked``: layers share a key."""
    index: list[int] = []
    layer = _LAYER.fullmatch(name) if stacked else None
    if layer:
        name = f"{layer[1]}.{layer[3]}"
        index.append(int(layer[2]))
    expert = _EXPERT.fullmatch(name) if ".local_experts." in name else None
    if expert:
        name = f"{expert[1]}.experts.{expert[3]}"
        index.append(int(expert[2]))
    return Key(name, tuple(index))


def leading_axes(key: str) -> int:
    """How many axes of a stored key count layers and experts."""
    return (_STACKED.fullmatch(key) is not None) + (_EXPERTS.fullmatch(key) is not None)


def logical_name(key: str, index: tuple[int, ...]) -> str:
    """The name of one layer and expert of a stored key: the inverse of :func:`stored_key`."""
    rest = list(index)
    stacked = _STACKED.fullmatch(key)
    if stacked:
        key = f"{stacked[1]}.{rest.pop(0)}.{stacked[2]}"
    experts = _EXPERTS.fullmatch(key)
    if experts:
        key = f"{experts[1]}.local_experts.{rest.pop(0)}.{experts[2]}"
    one = _ONE_EXPERT.fullmatch(key)  # a dialect of newer megatron-core: one key per expert
    if one:
        return f"{one[1]}.local_experts.{one[2]}.{one[3]}"
    grouped = _GROUPED.fullmatch(key)  # the module's own names of a grouped GEMM, where nothing stacked them
    return f"{grouped[1]}.local_experts.{grouped[4]}.{grouped[2]}.{grouped[3]}" if grouped else key


def kept(key: str, lead: tuple[int, ...], index: tuple[int, ...], layers: Mapping[int, int]) -> Place | None:
    """Where a tensor of one layer stands among only some ``layers`` (old number -> new number): its key, the
    lengths of the leading axes and the index on them. None for a layer that is not among them."""
    if _STACKED.fullmatch(key):
        if index[0] not in layers:
            return None
        return key, (len(layers), *lead[1:]), (layers[index[0]], *index[1:])
    found = _LAYER.fullmatch(key)
    if found is None:
        return key, lead, index
    layer = int(found[2])
    return (f"{found[1]}.{layers[layer]}.{found[3]}", lead, index) if layer in layers else None
