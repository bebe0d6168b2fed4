"""Which part of a decoder each weight of an ONNX graph is, proved from the dataflow alone.

A decoder's linear layers form a chain of sets. With R the layers whose results are summed in the residual
stream, query, key and value are fed by exactly R and feed an attention; the one layer that they feed is
the output projection o; what is fed by R + o is the MLP's first half; the one layer that it feeds is the
second half d; and the next layer has R + o + d. The head is fed by the last R. Query and key are told
apart by their operand in the attention, and once more by what is kept for later tokens; gate and up by
the activation. Names and order in the file play no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nemoconv.converters.onnx_dataflow import ACTIVATIONS, Attention, Dataflow
from nemoconv.converters.onnx_operations import Linear, Lookup, Weight
from nemoconv.errors import MappingError, some

_PRESENT: Final = re.compile(r"present(?:_key_values)?\.(\d+)\.(key|value)")


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a decoder: ``role`` ("query", "mlp norm", ...) in a layer, or outside the layers."""

    role: str
    layer: int | None = None
    kind: str = "weight"

    def __str__(self) -> str:
        return f"{self.role} {self.kind}" + (f" of layer {self.layer}" if self.layer is not None else "")


#: the role of a projection that is query, key and value one below the other
PACKED: Final = "query, key and value"


def find_places(flow: Dataflow) -> dict[Place, Weight]:
    """The place of every weight. Raises MappingError for a weight that has none, or a place without."""
    return _Walk(flow).places()


@dataclass(frozen=True, slots=True)
class _Layer:
    """The linear layers of one decoder layer; query, key and value are one when they are packed."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    gate: Linear | None
    up: Linear
    down: Linear

    def linears(self) -> Iterator[tuple[str, Linear]]:
        if self.query is self.key:
            yield PACKED, self.query
        else:
            yield from (("query", self.query), ("key", self.key), ("value", self.value))
        yield "attention output", self.out
        if self.gate is not None:
            yield "gate", self.gate
        yield from (("up", self.up), ("down", self.down))

    @property
    def projected(self) -> int:
        return self.query.bit | self.key.bit | self.value.bit

    @property
    def widened(self) -> int:
        return self.up.bit | (self.gate.bit if self.gate is not None else 0)


class _Walk:
    def __init__(self, flow: Dataflow) -> None:
        self._flow = flow
        self._linear_mask = flow.linear_mask()
        self._table = self._embedding()
        self._seen = self._linear_mask | self._table.bit
        self._fed_by: dict[int, list[Linear]] = {}
        for linear in flow.linears:
            self._fed_by.setdefault(self._sources(linear.data), []).append(linear)

    def places(self) -> dict[Place, Weight]:
        found: dict[Place, Weight] = {Place("embedding"): self._table.weight}
        residual = self._table.bit
        layers: list[_Layer] = []
        for attention in self._flow.attentions:
            layer = self._layer(attention, residual, len(layers))
            layers.append(layer)
            residual |= layer.out.bit | layer.down.bit
        head = self._only(residual, "the head", "fed by all layers")
        named = [*((role, n, one) for n, layer in enumerate(layers) for role, one in layer.linears())]
        for role, number, linear in [*named, ("head", None, head)]:
            found[Place(role, number)] = linear.weight
            if linear.bias is not None:
                found[Place(role, number, "bias")] = linear.bias
        placed = {id(linear) for _, _, linear in named} | {id(head)}
        self._refuse_rest([one.weight.name for one in self._flow.linears if id(one) not in placed])
        self._refuse_rest(
            [one.weight.name for one in self._flow.lookups if one is not self._table and self._is_fed(one)]
        )
        self._check_kept(layers)
        self._place_norms(found, layers, head)
        return found

    def _sources(self, value: str) -> int:
        return self._flow.sources.get(value, 0) & self._seen

    def _refuse(self, what: str) -> MappingError:
        return MappingError(
            f"{self._flow.where}: {what}",
            hint="the graph is not that of a decoder known here; --to safetensors writes it as it is",
        )

    def _refuse_rest(self, names: list[str]) -> None:
        if names:
            raise self._refuse(f"{len(names)} weights have no place in the model: {some(sorted(names))}")

    def _is_fed(self, lookup: Lookup) -> bool:
        """Whether a looked-up table is fed by, or added to, what the model computes from its input."""
        indices = lookup.node.inputs[1]
        return bool(self._sources(indices)) or lookup.weight.name == self._table.weight.name

    def _embedding(self) -> Lookup:
        """The table that alone feeds the first projections."""
        flow = self._flow
        if not flow.attentions:
            raise self._refuse("no attention was found")
        first = flow.sources.get(flow.attentions[0].query, 0) & self._linear_mask
        linear = flow.one(first)
        bits = flow.sources.get(linear.data, 0) if linear is not None else 0
        for lookup in flow.lookups:
            if lookup.bit == bits:
                return lookup
        raise self._refuse("no embedding was found that alone feeds the first attention")

    def _only(self, fed_by: int, what: str, how: str) -> Linear:
        found = self._fed_by.get(fed_by, [])
        if len(found) != 1:
            raise self._refuse(f"{what}: {len(found)} linear layers are {how}, not one")
        return found[0]

    def _layer(self, attention: Attention, residual: int, number: int) -> _Layer:
        where = f"layer {number}"
        query, key, value = (
            self._operand(v, role, where)
            for v, role in (
                (attention.query, "query"), (attention.key, "key"), (attention.value, "value")
            )
        )  # fmt: skip
        count = len({query.bit, key.bit, value.bit})
        if count != (1 if attention.packed else 3):
            raise self._refuse(f"{where}: query, key and value come from {count} linear layers")
        for linear in (query, key, value):
            if self._sources(linear.data) != residual:
                raise self._refuse(f"{where}: {linear.node} is not fed by the layers before it")
        rest = [one for one in self._fed_by[residual] if one.bit not in (query.bit, key.bit, value.bit)]
        if rest:
            raise self._refuse(f"{where}: {rest[0].node} stands beside query, key and value")
        projected = query.bit | key.bit | value.bit
        out = self._only(projected, f"{where}: the attention's output projection", "fed by the attention")
        wide = self._fed_by.get(residual | out.bit, [])
        if len(wide) not in (1, 2):
            raise self._refuse(f"{where}: the MLP begins with {len(wide)} linear layers")
        fed = wide[0].bit | wide[-1].bit
        down = self._only(fed, f"{where}: the MLP's second half", "fed by its first")
        gate = self._gate(wide, where) if len(wide) == 2 else None
        up = next(one for one in wide if one is not gate)
        return _Layer(query, key, value, out, gate, up, down)

    def _operand(self, value: str, role: str, where: str) -> Linear:
        linear = self._flow.one(self._flow.sources.get(value, 0) & self._linear_mask)
        if linear is None:
            raise self._refuse(f"{where}: no single linear layer makes the {role}")
        return linear

    def _gate(self, wide: list[Linear], where: str) -> Linear:
        active = [one for one in wide if self._flow.between(one.output) & ACTIVATIONS]
        if len(active) != 1:
            raise self._refuse(f"{where}: {len(active)} of the MLP's first linear layers have an activation")
        return active[0]

    def _check_kept(self, layers: list[_Layer]) -> None:
        """Keys and values that the graph gives out for later tokens must be those of their layers."""
        for output in self._flow.onnx.outputs:
            match = _PRESENT.fullmatch(output.name)
            if match is None:
                continue
            number, kind = int(match[1]), match[2]
            if number >= len(layers):
                raise self._refuse(f"gives {output.name}, but has {len(layers)} layers")
            layer = layers[number]
            expected = layer.key if kind == "key" else layer.value
            if self._flow.sources.get(output.name, 0) & self._linear_mask != expected.bit:
                raise self._refuse(f"{output.name} is not made by what its attention takes for the {kind}")

    def _place_norms(self, found: dict[Place, Weight], layers: list[_Layer], head: Linear) -> None:
        by_sinks = {head.bit: Place("final norm")}
        by_sources: dict[int, Place] = {}
        for number, layer in enumerate(layers):
            by_sinks[layer.projected] = Place("input norm", number)
            by_sinks[layer.widened] = Place("mlp norm", number)
            by_sources[layer.out.bit] = Place("attention output norm", number)
            by_sources[layer.down.bit] = Place("mlp output norm", number)
            if layer.query is not layer.key:
                by_sources[layer.query.bit] = Place("query norm", number)
                by_sources[layer.key.bit] = Place("key norm", number)
        left = []
        for norm in self._flow.norms:
            sources, sinks = self._sources(norm.data), self._flow.sinks.get(norm.output, 0)
            if not sources:
                continue  # made from positions, not from the model's input
            place = by_sources.get(sources) or by_sinks.get(sinks)
            if place is None or place in found:
                left.append(norm.weight.name)
                continue
            found[place] = norm.weight
            if norm.bias is not None:
                found[Place(place.role, place.layer, "bias")] = norm.bias
        self._refuse_rest(left)
