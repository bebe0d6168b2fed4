"""How torch_dist names and stacks what a table names one by one.

Megatron gives a homogeneous model's tensors a leading axis for the layers, and experts one more:
``decoder.layers.7.mlp.experts.local_experts.3.linear_fc2.weight`` is row [7, 3] of
``decoder.layers.mlp.experts.experts.linear_fc2.weight``. A model whose layers differ keeps the layer in
the name. A model of several parts has a stack for each: ``vision_model.decoder.layers`` counts an encoder's.
Source: megatron/core/transformer/transformer_block.py, ``sharded_state_dict``, and moe/experts.py.
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

#: what the names of an encoder beside the decoder, and of what leads from it to the decoder, begin with
_BESIDE: Final = ("vision_model.", "vision_projection.")
_STACKS = r"((?:(?:language|vision)_model\.)?(?:decoder|encoder)\.layers)"
_LAYER = re.compile(_STACKS + r"\.(\d+)\.(.+)")
_STACKED = re.compile(_STACKS + r"\.(?!\d+\.)(.+)")
_EXPERT = re.compile(r"(.+\.experts)\.local_experts\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"(.+\.experts)\.experts\.(?!\d+\.)(.+)")
_HALF = re.compile(r"(.+\.linear_fc1\.(?:weight|bias))_[wv]")
_ONE_EXPERT = re.compile(r"(.+\.experts)\.experts\.(\d+)\.(.+)")
_GROUPED = re.compile(r"(.+\.mlp\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)")


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A stored key and the index on its leading axes, (layer, expert), where it has such axes."""

    name: str
    index: tuple[int, ...]


def stored_key(name: str, *, stacked: bool) -> StoredKey:
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
    return StoredKey(name, tuple(index))


def alone(name: str) -> str:
    """The key of a tensor that shares its key with no other layer or expert (``singleton_local_shards``)."""
    return name.replace(".experts.local_experts.", ".experts.experts.")


def layer_count(key: str) -> str | None:
    """Which size says how many layers share a stored key; None for a key that layers do not share."""
    if not _STACKED.fullmatch(key):
        return None
    return "blocks" if is_beside(key) else "layers"


def is_beside(name: str) -> bool:
    """Whether a tensor or module is of an encoder beside the decoder, before whose layers it stands."""
    return name.startswith(_BESIDE)


def whole_of_half(key: str) -> str | None:
    """The key of a gated ``linear_fc1`` of which a stored key is one half; None for other keys."""
    found = _HALF.fullmatch(key)
    return found[1] if found else None


def halves_of(key: str) -> tuple[str, str]:
    """The keys of gate and up where each has its own."""
    return f"{key}_w", f"{key}_v"


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
    if is_beside(key):
        return key, lead, index
    if _STACKED.fullmatch(key):
        if index[0] not in layers:
            return None
        return key, (len(layers), *lead[1:]), (layers[index[0]], *index[1:])
    found = _LAYER.fullmatch(key)
    if found is None:
        return key, lead, index
    layer = int(found[2])
    return (f"{found[1]}.{layers[layer]}.{found[3]}", lead, index) if layer in layers else None
