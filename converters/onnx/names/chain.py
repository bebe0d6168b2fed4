"""The layers of a transformer in an ONNX graph, one after another along the residual stream.

Each :class:`Layer` says which linear layers, or which of their rows, are its query, key, value and the rest.
See :mod:`nemoconv.converters.onnx.names.places` for what is proved, and how.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ....errors import MappingError, some
from .consumers import Linear
from .dataflow import ACTIVATIONS, AttentionOperands, Dataflow
from .experts import correction, expert_of, picks_experts
from .roles import WeightPlace
from .rows import RowFlow, tile
from .values import InitializerView, Rows

OPERANDS: Final = ("query", "key", "value")
_PRESENT: Final = re.compile(r"present(?:_key_values)?\.(\d+)\.(key|value)")


@dataclass(frozen=True, slots=True)
class LinearRows:
    """A linear layer, or these of its rows; of a stack of them, the one at ``item``."""

    linear: Linear
    rows: Rows | None = None
    item: int | None = None

    @property
    def weight(self) -> InitializerView:
        return self._of(self.linear.weight)

    @property
    def bias(self) -> InitializerView | None:
        return self._of(self.linear.bias) if self.linear.bias is not None else None

    def _of(self, held: InitializerView) -> InitializerView:
        return replace(held, rows=self.rows, item=held.item if self.item is None else self.item)


@dataclass(frozen=True, slots=True)
class MlpParts:
    """An MLP, or a mixture of experts: its parts by role, with the number of the expert. ``widened`` are the
    bits of the layers that the residual stream feeds, ``added`` of what it adds to the stream;
    ``correction`` is added to the router's scores for choosing only."""

    parts: Sequence[tuple[str, int | None, LinearRows]]
    widened: int
    added: int
    correction: InitializerView | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. ``mixed``: what makes query, key and value; ``row_flow``: of the linear layer that makes all
    three."""

    mixed: Mapping[str, LinearRows]
    row_flow: RowFlow | None
    sinks: InitializerView | None
    out: Linear
    mlp: MlpParts

    def placed(self, number: int) -> Iterator[tuple[WeightPlace, LinearRows]]:
        for role, part in self.mixed.items():
            yield WeightPlace(role, number), part
        yield WeightPlace("attention output", number), LinearRows(self.out)
        for role, expert, part in self.mlp.parts:
            yield WeightPlace(role, number, expert=expert), part

    @property
    def added(self) -> int:
        """What the layer adds to the residual stream."""
        return self.out.bit | self.mlp.added

    @property
    def projected(self) -> int:
        return _bits(self.mixed.values())

    def norms(self, number: int) -> Iterator[tuple[WeightPlace, int]]:
        """Norms of what a part gives, and the bits of that part."""
        yield WeightPlace("attention output norm", number), self.out.bit
        yield WeightPlace("mlp output norm", number), self.mlp.added
        if self.row_flow is None and len({part.linear.bit for part in self.mixed.values()}) == len(OPERANDS):
            for role in ("query", "key"):
                yield WeightPlace(f"{role} norm", number), self.mixed[role].linear.bit


class Chain:
    """Finds layer after layer. ``stream`` are the tables that make the first hidden states."""

    def __init__(self, flow: Dataflow, stream: int) -> None:
        self._flow = flow
        self._linear_mask = flow.linear_mask()
        self._seen = self._linear_mask | stream
        self._fed_by: dict[int, list[Linear]] = {}
        for linear in flow.linears:
            self._fed_by.setdefault(self.sources(linear.data, linear.chosen), []).append(linear)

    def sources(self, *values: str) -> int:
        """The linear layers and tables of the stream that values are made from."""
        mask = 0
        for value in values:
            mask |= self._flow.sources.get(value, 0)
        return mask & self._seen

    def fed_by(self, sources: int) -> Sequence[Linear]:
        """Linear layers that take exactly this."""
        return self._fed_by.get(sources, ())

    def refuse(self, what: str) -> MappingError:
        return unknown(self._flow, what)

    def refuse_rest(self, names: list[str]) -> None:
        if names:
            raise self.refuse(f"{len(names)} weights have no place in the model: {some(sorted(names))}")

    def layer(self, attention: AttentionOperands, residual: int, number: int) -> Layer:
        """The layer of an attention, whose input is ``residual``. Raises MappingError."""
        where = f"layer {number}"
        mixed, row_flow = self._mixed(attention, where)
        for part in mixed.values():
            if self.sources(part.linear.data) != residual:
                raise self.refuse(f"{where}: {part.linear.node} is not fed by the layers before it")
        projected = _bits(mixed.values())
        rest = [one for one in self.fed_by(residual) if not one.bit & projected]
        if rest:
            raise self.refuse(f"{where}: {rest[0].node} stands beside query, key and value")
        out = self._only(projected, f"{where}: the attention's output projection", "fed by the attention")
        return Layer(mixed, row_flow, attention.sinks, out, self._mlp(residual | out.bit, where))

    def _mlp(self, stream: int, where: str) -> MlpParts:
        wide = self.fed_by(stream)
        # layers that take their data from the stream and their choice of matrices from the router
        routers = [one for one in wide if self.fed_by(stream | one.bit)]
        if routers:
            shared = self._shared([one for one in wide if one is not routers[0]], where)
            mixture = self._experts(routers[0], stream, where)
            return MlpParts(
                [*mixture.parts, *shared.parts],
                mixture.widened | shared.widened,
                mixture.added | shared.added,
                correction(self._flow, routers[0]),
            )
        if len(wide) not in (1, 2):
            raise self.refuse(f"{where}: the MLP begins with {len(wide)} linear layers")
        parts, down = self._dense(wide, where)
        return MlpParts(
            [*((role, None, part) for role, part in parts.items()), ("down", None, LinearRows(down))],
            _bits(parts.values()),
            down.bit,
        )

    def _dense(
        self, wide: Sequence[Linear], where: str, chosen_by: int = 0
    ) -> tuple[dict[str, LinearRows], Linear]:
        """What the first layers of an MLP are, and its second half, whose matrices ``chosen_by`` picks."""
        fed = wide[0].bit | wide[-1].bit | chosen_by
        down = self._only(fed, f"{where}: the MLP's second half", "fed by its first")
        return self._gated(wide, where) if len(wide) == 2 else self._packed_gate(wide[0], where), down

    def _shared(self, beside: Sequence[Linear], where: str) -> MlpParts:
        """An expert that every token passes, perhaps times one number for each token."""
        scales = [one for one in beside if one.rows == 1]
        wide = [one for one in beside if one.rows != 1]
        if len(wide) not in (0, 2) or len(scales) > (1 if wide else 0):
            raise self.refuse(f"{where}: {beside[0].node} stands beside the router of a mixture of experts")
        found: list[tuple[str, int | None, LinearRows]] = [
            ("shared scale", None, LinearRows(one)) for one in scales
        ]
        if not wide:
            return MlpParts(found, 0, 0)
        parts, down = self._dense(wide, f"{where}, shared expert")
        found += [(f"shared {role}", None, part) for role, part in parts.items()]
        found.append(("shared down", None, LinearRows(down)))
        once = _bits(part for _, _, part in found[:1] if scales)
        return MlpParts(found, once | _bits(parts.values()), once | down.bit)

    def _experts(self, router: Linear, stream: int, where: str) -> MlpParts:
        """Experts that are linear layers of their own, numbered as the router's rows are."""
        by_number: dict[int, list[Linear]] = {}
        fed = self.fed_by(stream | router.bit)
        if any(linear.chosen for linear in fed):
            return self._stacked(router, fed, where)
        for linear in fed:
            number = expert_of(self._flow, linear, router)
            if number is None:
                raise self.refuse(f"{where}: the graph does not tell which expert {linear.node} belongs to")
            by_number.setdefault(number, []).append(linear)
        if sorted(by_number) != list(range(router.rows)):
            raise self.refuse(f"{where}: {len(by_number)} of the router's {router.rows} experts were found")
        found: list[tuple[str, int | None, LinearRows]] = [("router", None, LinearRows(router))]
        widened = added = router.bit
        for number in sorted(by_number):
            parts, down = self._dense(by_number[number], f"{where}, expert {number}")
            if len(by_number[number]) > 2:
                raise self.refuse(f"{where}: expert {number} begins with {len(by_number[number])} layers")
            found += [(role, number, part) for role, part in parts.items()]
            found.append(("down", number, LinearRows(down)))
            widened |= _bits(parts.values())
            added |= down.bit
        return MlpParts(found, widened, added)

    def _stacked(self, router: Linear, fed: Sequence[Linear], where: str) -> MlpParts:
        """Experts in stacks of matrices, of which the best are picked for each token."""
        parts, down = self._dense(fed, where, router.bit)
        if down.node.op == "MoE":
            parts = self._alternating(fed, down, where)
        linears = {part.linear.node.outputs[0]: part.linear for part in parts.values()}
        for linear in (*linears.values(), down):
            if not linear.chosen or not picks_experts(self._flow, linear, router):
                raise self.refuse(f"{where}: the graph does not tell which experts {linear.node} multiplies")
        found: list[tuple[str, int | None, LinearRows]] = [("router", None, LinearRows(router))]
        for number in range(router.rows):
            found += [(role, number, replace(part, item=number)) for role, part in parts.items()]
            found.append(("down", number, LinearRows(down, item=number)))
        return MlpParts(found, router.bit | _bits(parts.values()), router.bit | down.bit)

    def _alternating(self, fed: Sequence[Linear], down: Linear, where: str) -> dict[str, LinearRows]:
        """Gate and up of onnxruntime's operator, where its attributes say that their rows alternate."""
        told = {name: down.node.attributes.get(name) for name in ("activation_type", "swiglu_fusion")}
        if len(fed) != 1 or fed[0].node is not down.node or list(told.values()) != ["swiglu", 1]:
            raise self.refuse(f"{where}: {down.node} has {told}, so its gate is not known here")
        return {"gate": LinearRows(fed[0], Rows(0, 1, 2)), "up": LinearRows(fed[0], Rows(1, 1, 2))}

    def _mixed(
        self, attention: AttentionOperands, where: str
    ) -> tuple[dict[str, LinearRows], RowFlow | None]:
        """What makes query, key and value."""
        operands = dict(zip(OPERANDS, (attention.query, attention.key, attention.value), strict=True))
        linears = {role: self._operand(value, role, where) for role, value in operands.items()}
        count = len({linear.bit for linear in linears.values()})
        if count == len(OPERANDS):
            return {role: LinearRows(linear) for role, linear in linears.items()}, None
        if count != 1:
            raise self.refuse(f"{where}: query, key and value come from {count} linear layers")
        linear, row_flow = linears["query"], RowFlow(self._flow, linears["query"])
        if attention.packed:
            if not row_flow.in_order(attention.query):
                raise self.refuse(
                    f"{where}: {attention.node} does not take what {linear.node} gives as it is"
                )
            rows = self._told(attention, linear, where)
            return {role: LinearRows(linear, rows[role]) for role in OPERANDS}, None
        found = {role: row_flow.rows(value) for role, value in operands.items()}
        told = {role: rows for role, rows in found.items() if rows is not None}
        if len(told) != len(OPERANDS) or not tile(list(told.values())):
            raise self.refuse(
                f"{where}: {linear.node} makes query, key and value, and the graph does not tell which rows"
            )
        return {role: LinearRows(linear, rows) for role, rows in told.items()}, row_flow

    def _told(self, attention: AttentionOperands, linear: Linear, where: str) -> dict[str, Rows]:
        """The rows that a GroupQueryAttention takes of its one input: queries, keys, values."""
        node = attention.node
        heads, groups = (node.attributes.get(name, 0) for name in ("num_heads", "kv_num_heads"))
        counted = type(heads) is int and type(groups) is int and heads > 0 and groups > 0
        if not counted or linear.rows % (heads + 2 * groups):
            raise self.refuse(f"{where}: {node} has {heads} and {groups} heads in {linear.rows:,} rows")
        width = linear.rows // (heads + 2 * groups)
        firsts = (0, heads, heads + groups)
        counts = (heads, groups, groups)
        return {
            role: Rows(first * width, count * width, linear.rows)
            for role, first, count in zip(OPERANDS, firsts, counts, strict=True)
        }

    def _operand(self, value: str, role: str, where: str) -> Linear:
        linear = self._flow.one(self._flow.sources.get(value, 0) & self._linear_mask)
        if linear is None:
            raise self.refuse(f"{where}: no single linear layer makes the {role}")
        return linear

    def _only(self, fed_by: int, what: str, how: str) -> Linear:
        found = self.fed_by(fed_by)
        if len(found) != 1:
            raise self.refuse(f"{what}: {len(found)} linear layers are {how}, not one")
        return found[0]

    def _gated(self, wide: Sequence[Linear], where: str) -> dict[str, LinearRows]:
        active = [one for one in wide if self._flow.between(one.output) & ACTIVATIONS]
        if len(active) != 1:
            raise self.refuse(f"{where}: {len(active)} of the MLP's first linear layers have an activation")
        up = next(one for one in wide if one is not active[0])
        return {"gate": LinearRows(active[0]), "up": LinearRows(up)}

    def _packed_gate(self, wide: Linear, where: str) -> dict[str, LinearRows]:
        """Gate and up where one layer makes both, else up alone."""
        row_flow = RowFlow(self._flow, wide)
        slices = row_flow.slices
        if not slices:
            return {"up": LinearRows(wide)}
        active = {
            row_flow.rows(node.inputs[0]) for node in self._flow.after(wide.output) if node.op in ACTIVATIONS
        }
        if len(slices) != 2 or len(active) != 1 or not active <= slices or not tile(list(slices)):
            raise self.refuse(f"{where}: {wide.node} is cut into pieces that are not gate and up")
        (gate,) = active
        (up,) = slices - active
        return {"gate": LinearRows(wide, gate), "up": LinearRows(wide, up)}

    def check_kept(self, layers: Sequence[Layer]) -> None:
        """Keys and values that the graph gives out for later tokens must be those of their layers."""
        for output in self._flow.onnx.outputs:
            match = _PRESENT.fullmatch(output.name)
            if match is None:
                continue
            number, kind = int(match[1]), match[2]
            if number >= len(layers):
                raise self.refuse(f"gives {output.name}, but has {len(layers)} layers")
            expected, row_flow = layers[number].mixed[kind], layers[number].row_flow
            made = self._flow.sources.get(output.name, 0) & self._linear_mask == expected.linear.bit
            if not made or (row_flow is not None and row_flow.rows(output.name) != expected.rows):
                raise self.refuse(f"{output.name} is not made by what its attention takes for the {kind}")


def _bits(parts: Iterable[LinearRows]) -> int:
    mask = 0
    for part in parts:
        mask |= part.linear.bit
    return mask


def unknown(flow: Dataflow, what: str) -> MappingError:
    """The error of a graph in which something is not as in any model known here."""
    return MappingError(
        f"{flow.where}: {what}",
        hint="the graph is not that of a model known here; --to safetensors writes it as it is",
    )
