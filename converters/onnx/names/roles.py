"""What an architecture calls the parts of its model that an ONNX graph tells apart: its names, read back.

A role is what a weight does ("query", "mlp norm", "router"); with the number of its layer and expert it is a
place. Roles with the same name are one tensor, one below the other in the order of the roles. Those of
experts have "expert" before their role, where layers without experts may be, too. A name for a role with its
kind ("predictions bias") is that of the tensor itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ....mappings import described
from ....mappings.architecture import Architecture
from ....mappings.blocks.attention import Attention
from ....mappings.blocks.names import ROLES
from ....mappings.blocks.stack import Stack
from ....mappings.table import Table

#: what the reader calls roles that name a tensor
_WORDS: Final = {"sinks": "sinks weight", "correction": "router correction weight"}
#: roles of a dense MLP, which no layer has where all have experts
_DENSE: Final = frozenset({"gate", "up", "down"})


@dataclass(frozen=True, slots=True)
class WeightPlace:
    """A part of a model: ``role`` ("query", "mlp norm", ...) in a layer, or outside the layers; ``expert``:
    of this one of several alike."""

    role: str
    layer: int | None = None
    kind: str = "weight"
    expert: int | None = None

    def of(self, kind: str) -> WeightPlace:
        return replace(self, kind=kind)

    def __str__(self) -> str:
        expert = f" of expert {self.expert}" if self.expert is not None else ""
        return f"{self.role} {self.kind}{expert}" + (
            f" of layer {self.layer}" if self.layer is not None else ""
        )


@dataclass(frozen=True, slots=True)
class Roles:
    """An architecture whose parts the graph tells.

    ``offset_norms``: norms multiply by 1 + weight. ``post_norm``: norms stand in the residual stream.
    ``neighbours``: rotation pairs neighbouring elements of a head. ``by_group``: query, key and value that
    are one tensor alternate, for each group of query heads. ``in_out``: matrices of layers are stored
    [in, out]. ``stacked``: those of experts are, too, one below the other in one tensor, with rows of gate
    and up alternating.
    """

    names: Mapping[str, str]
    offset_norms: bool = False
    post_norm: bool = False
    neighbours: bool = False
    by_group: bool = False
    in_out: bool = False
    stacked: bool = False

    def name(self, place: WeightPlace) -> str | None:
        """Hugging Face's name of a weight, None for one that the architecture does not have."""
        role = place.role if place.expert is None else f"expert {place.role}"
        whole = self.names.get(f"{role} {place.kind}")
        name = whole or self.names.get(role)
        if name is None:
            return None
        told = name.format(layer=place.layer, expert=place.expert)
        return told if whole else f"{told}.{place.kind}"


def roles_of(table: Table) -> Roles | None:
    """What an architecture calls its parts; None for one whose parts a graph does not tell."""
    architecture = described(table.architecture)
    return None if architecture is None else _roles(architecture)


def _roles(architecture: Architecture) -> Roles | None:
    if not architecture.follows:
        return None
    stack = architecture.main
    names, blocks, attention = stack.names, stack.blocks, stack.blocks.attention
    encodes = not names.input_norm  # norms in the residual stream, as BERT has them
    if not isinstance(attention, Attention) or blocks.chunked or not (blocks.generates or encodes):
        return None
    return Roles(
        dict(_names(stack)),
        offset_norms=blocks.norm.offset != 0,
        post_norm=encodes,
        neighbours=blocks.neighbours,
        by_group=attention.by_group,
        in_out=blocks.transposed,
        stacked=bool(blocks.mixture and blocks.mixture.stacked),
    )


def _names(stack: Stack) -> Iterator[tuple[str, str]]:
    """(role as the reader calls it, template of the name)."""
    names, mixture = stack.names, stack.blocks.mixture
    all_sparse = mixture is not None and mixture.layer_sets is None
    for role in ROLES:
        name, words = names.full(role), role.replace("_", " ")
        if not name or (all_sparse and role in _DENSE):
            continue
        if mixture and mixture.stacked and role.startswith("expert_"):
            yield f"{words} weight", name
            if mixture.biases:
                yield f"{words} bias", name + "_bias"
        else:
            yield _WORDS.get(role, words), name
