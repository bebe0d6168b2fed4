"""Which part of a model each weight of an ONNX graph is, proved from the dataflow alone.

Every linear layer has sources: the layers and tables that its input is made from
(:mod:`nemoconv.converters.onnx.names.dataflow`). Those of a transformer form a chain of sets. Let R be the
sources of the residual stream, at first the embedding tables. Then

- query, key and value are the layers whose sources are exactly R and whose outputs meet in an attention;
- the output projection o is the one layer whose sources are query, key and value;
- the MLP's first half (gate and up) has the sources R + o; the second half d has the first half's bits;
- the next layer begins with R + o + d, and the heads have the sources of the last residual stream.

Query and key are told apart by which operand of the attention they are, and once more by the outputs in which
the graph keeps keys and values for later tokens; gate and up by the activation. Norms are told by the sources
of what they take. Names and order in the file play no part.
"""

from __future__ import annotations

from typing import Final

from ....errors import UnsupportedError, some
from .chain import Chain, Layer, LinearRows, unknown
from .consumers import Linear, Lookup, NormNode
from .dataflow import Dataflow
from .roles import WeightPlace
from .values import InitializerView

#: what the heads of an encoder feed, by the role of the head
_AFTER: Final = {"pooler": "next sentence", "transform": "predictions"}


def find_places(
    flow: Dataflow, *, post_norm: bool = False, neighbours: bool = False
) -> dict[WeightPlace, InitializerView]:
    """The place of every weight. ``post_norm``: norms stand in the residual stream, after attention and MLP;
    ``neighbours``: the model rotates neighbouring elements of a head, not halves.

    Raises MappingError for a weight that has none, or a place without, UnsupportedError for rows that are
    rotated otherwise than in the model.
    """
    for attention in flow.attentions:
        told = attention.node.attributes
        paired = bool(told.get("rotary_interleaved"))
        if paired != neighbours and (paired or told.get("do_rotary")):
            pairs = ("halves", "neighbours")
            raise UnsupportedError(
                f"{flow.where}: {attention.node} rotates {pairs[paired]}, not {pairs[neighbours]}"
            )
    return _PlaceFinder(flow, post_norm=post_norm).places()


class _PlaceFinder:
    def __init__(self, flow: Dataflow, *, post_norm: bool) -> None:
        self._flow, self._post_norm = flow, post_norm
        self._tables = _tables_of(flow)
        self._stream = 0
        for table in self._tables.values():
            self._stream |= table.bit
        self._chain = Chain(flow, self._stream)
        self._found: dict[WeightPlace, InitializerView] = {
            WeightPlace(role): table.weight for role, table in self._tables.items()
        }

    def places(self) -> dict[WeightPlace, InitializerView]:
        residual, streams = self._stream, [self._stream]
        layers: list[Layer] = []
        for attention in self._flow.attentions:
            layer = self._chain.layer(attention, residual, len(layers))
            layers.append(layer)
            residual |= layer.added
            streams.append(residual)
        tail = self._tail(residual)
        placed = set()
        for number, layer in enumerate(layers):
            for place, part in layer.placed(number):
                self._put(place, part)
                placed.add(id(part.linear))
            for role, weight in (("sinks", layer.sinks), ("router correction", layer.mlp.correction)):
                if weight is not None:
                    self._found[WeightPlace(role, number)] = weight
        for role, linear in tail.items():
            self._put(WeightPlace(role), LinearRows(linear))
            placed.add(id(linear))
        self._chain.refuse_rest([one.weight.name for one in self._flow.linears if id(one) not in placed])
        known = {id(table) for table in self._tables.values()}
        self._chain.refuse_rest(
            [one.weight.name for one in self._flow.lookups if id(one) not in known and self._is_fed(one)]
        )
        self._chain.check_kept(layers)
        self._place_norms(layers, streams, tail)
        return self._found

    def _put(self, place: WeightPlace, part: LinearRows) -> None:
        self._found[place] = part.weight
        if part.bias is not None:
            self._found[place.of("bias")] = part.bias

    def _is_fed(self, lookup: Lookup) -> bool:
        """Whether a looked-up table is fed by, or added to, what the model computes from its input."""
        return bool(self._chain.sources(lookup.node.inputs[1])) or any(
            lookup.weight.name == table.weight.name for table in self._tables.values()
        )

    def _tail(self, residual: int) -> dict[str, Linear]:
        """The heads by role: what is fed by all layers, and what that feeds."""
        found: dict[str, Linear] = {}
        for linear in self._chain.fed_by(residual):
            role = self._head(linear)
            after = self._chain.fed_by(linear.bit) if role in _AFTER else ()
            if role in found or len(after) > 1:
                raise self._chain.refuse(f"the {role}: several linear layers are fed by all layers, not one")
            found[role] = linear
            if after:
                found[_AFTER[role]] = after[0]
        return found

    def _head(self, linear: Linear) -> str:
        if not self._post_norm:
            return "head"
        near = {node.op for node in self._flow.consumers.get(linear.output, ())}
        if near == {"Tanh"}:
            return "pooler"
        return "transform" if self._flow.sinks.get(linear.output, 0) else "head"

    def _place_norms(self, layers: list[Layer], streams: list[int], tail: dict[str, Linear]) -> None:
        own = {place: mask for number, layer in enumerate(layers) for place, mask in layer.norms(number)}
        by_sources = {mask: place for place, mask in own.items()}
        if "transform" in tail:
            by_sources[tail["transform"].bit] = WeightPlace("transform norm")
        stream = self._stream_norms(layers, streams, tail)
        left = []
        for norm in self._flow.norms:
            sources = self._chain.sources(*norm.data)
            if not sources:
                continue  # made from positions, not from the model's input
            place = self._packed_norm(layers, norm) or by_sources.get(sources) or self._on(norm, stream)
            if place is None or place in self._found:
                left.append(norm.weight.name)
                continue
            self._found[place] = norm.weight
            if norm.bias is not None:
                self._found[place.of("bias")] = norm.bias
        self._chain.refuse_rest(left)

    def _stream_norms(
        self, layers: list[Layer], streams: list[int], tail: dict[str, Linear]
    ) -> dict[int, tuple[WeightPlace, int]]:
        """Norms of what the residual stream holds: place, and the layers that it feeds next, by sources."""
        found: dict[int, tuple[WeightPlace, int]] = {}
        heads = 0
        for role, linear in tail.items():
            heads |= linear.bit if role not in _AFTER.values() else 0
        for number, layer in enumerate(layers):
            before, between = ("input norm", "mlp norm")
            place = WeightPlace(before, number)
            if self._post_norm:
                place = (
                    WeightPlace("mlp output norm", number - 1) if number else WeightPlace("embedding norm")
                )
                between = "attention output norm"
            found[streams[number]] = place, layer.projected
            found[streams[number] | layer.out.bit] = WeightPlace(between, number), layer.mlp.widened
        last = (
            WeightPlace("mlp output norm", len(layers) - 1) if self._post_norm else WeightPlace("final norm")
        )
        found[streams[-1]] = last, heads
        return found

    def _on(self, norm: NormNode, stream: dict[int, tuple[WeightPlace, int]]) -> WeightPlace | None:
        """The place of a norm of the residual stream: in the stream itself it reaches all later layers,
        beside it only those that it stands before."""
        place, feeds = stream.get(self._chain.sources(*norm.data), (None, 0))
        reached = self._flow.sinks.get(norm.output, 0)
        return place if (reached & feeds if self._post_norm else reached) == feeds else None

    @staticmethod
    def _packed_norm(layers: list[Layer], norm: NormNode) -> WeightPlace | None:
        """A norm of queries or keys that one projection makes together."""
        for number, layer in enumerate(layers):
            rows = layer.row_flow.rows(norm.data[0]) if layer.row_flow is not None else None
            for role in ("query", "key"):
                if rows is not None and rows == layer.mixed[role].rows:
                    return WeightPlace(f"{role} norm", number)
        return None


def _tables_of(flow: Dataflow) -> dict[str, Lookup]:
    """By role: "embedding", "token types", "positions". They alone feed the first attention, and are told
    apart by the input of the graph that says which rows are taken. Raises MappingError."""
    first = _first_sources(flow)
    found: dict[str, Lookup] = {}
    for lookup in flow.lookups:
        if not first & lookup.bit:
            continue
        given = flow.inputs_of(lookup.node.inputs[1])
        role = (
            "embedding"
            if "input_ids" in given
            else "token types"
            if "token_type_ids" in given
            else "positions"
        )
        if role in found:
            names = some([found[role].weight.name, lookup.weight.name])
            raise unknown(flow, f"two tables look like that of {role}: {names}")
        found[role] = lookup
        first &= ~lookup.bit
    if first or "embedding" not in found:
        raise unknown(flow, "no table was found that is looked up by input_ids and feeds the first attention")
    return found


def _first_sources(flow: Dataflow) -> int:
    """What feeds the linear layer that makes the first attention's queries."""
    if not flow.attentions:
        raise unknown(flow, "no attention was found")
    linear = flow.one(flow.sources.get(flow.attentions[0].query, 0) & flow.linear_mask())
    if linear is None:
        raise unknown(flow, "no single linear layer makes the first attention's queries")
    return flow.sources.get(linear.data, 0)
