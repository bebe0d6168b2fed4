"""The nodes of an ONNX graph that consume weights: linear layers, looked-up tables, norms.

A linear layer is one node (MatMul, Gemm, MatMulNBits) or one half of onnxruntime's MoE; experts may have
their matrices stacked in one initializer, of which the graph takes one for each token. Every linear layer and
every table gets a bit of its own, so that :mod:`nemoconv.converters.onnx.names.dataflow` can say with one
number what a value is made from.

Source: ONNX Runtime, docs/ContribOperators.md, MoE: weights are [experts, out, in], biases [experts, out].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from ....errors import UnsupportedError
from ....formats.onnx.file import OnnxFile, OnnxNode
from .values import MICROSOFT, InitializerView, Values, is_vector, is_weight

#: norms by operation: positions of the input, of the weight and of the bias
_NORMS: Final[dict[str, tuple[int, int, int | None]]] = {
    "RMSNormalization": (0, 1, None),
    "SimplifiedLayerNormalization": (0, 1, None),
    "LayerNormalization": (0, 1, 2),
    "SkipSimplifiedLayerNormalization": (0, 2, None),
    "SkipLayerNormalization": (0, 2, 3),
}


@dataclass(frozen=True, slots=True)
class Linear:
    """A multiplication of the value ``data`` with a weight [``rows``, in]. ``output`` is the value that
    results, bias added; ``rank`` how many axes that has, the rows along the last. ``chosen``: the weight is
    [experts, ``rows``, in], and this value says which of them multiplies each token. Where one node is
    several layers, the values between these get names of our own."""

    bit: int
    node: OnnxNode
    data: str
    output: str
    rows: int
    weight: InitializerView
    bias: InitializerView | None
    rank: int
    chosen: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A node that takes rows from a table."""

    bit: int
    node: OnnxNode
    weight: InitializerView


@dataclass(frozen=True, slots=True)
class NormNode:
    """A node that multiplies each element of the last axis with a weight. ``data``: the values that it adds
    up first."""

    node: OnnxNode
    data: tuple[str, ...]
    output: str
    weight: InitializerView
    bias: InitializerView | None


class Consumers(Values):
    """The weights of a graph by the nodes that consume them. Raises the errors of :class:`Values`,
    UnsupportedError for products that are scaled."""

    def __init__(self, onnx: OnnxFile) -> None:
        super().__init__(onnx)
        self.linears: list[Linear] = []
        self.lookups: list[Lookup] = []
        self.norms: list[NormNode] = []
        #: the linear layer and the lookup that a node is, by the node's id; the last of several
        self.linear_of: dict[int, Linear] = {}
        self.parts_of: dict[int, list[Linear]] = {}
        self.lookup_of: dict[int, Lookup] = {}
        self._find_weights()

    def _find_weights(self) -> None:
        for node in self.onnx.nodes:
            weight = self._linear_weight(node)
            if weight is not None:
                self._add_linear(node, weight)
            elif self._add_stacked(node):
                continue
            elif node.op in ("Gather", "GatherBlockQuantized"):
                table = self._table(node)
                if table is not None:
                    lookup = Lookup(self._next_bit(), node, table)
                    self.lookups.append(lookup)
                    self.lookup_of[id(node)] = lookup
            else:
                self._find_norm(node)

    def _table(self, node: OnnxNode) -> InitializerView | None:
        """The table that a node looks rows up in, None for other uses of the operation."""
        if node.op == "Gather":
            table = self.weight(node.inputs[0])
            known = table is not None and len(table.initializer.shape) == 2 and is_weight(table)
            return table if known else None
        reshape = self.producer.get(node.inputs[0])
        packed = reshape.inputs[0] if reshape is not None and reshape.op == "Reshape" else node.inputs[0]
        held = self.onnx.initializers.get(packed)
        return InitializerView(held, decoder=node) if held is not None else None

    def _add_linear(self, node: OnnxNode, weight: InitializerView) -> None:
        bias, output = self._bias(node)
        rows = self._row_count(weight)
        # hidden states are [batch, sequence, features] unless a Gemm has flattened them
        rank = 2 if node.op == "Gemm" else 3
        linear = Linear(self._next_bit(), node, node.inputs[0], output, rows, weight, bias, rank)
        self.linears.append(linear)
        self.linear_of[id(node)] = linear

    def _add_stacked(self, node: OnnxNode) -> bool:
        """Whether an operation multiplies with matrices of experts; their stacks are added."""
        found = _stacked(self, node)
        for layer in found:
            linear = replace(layer, bit=self._next_bit())
            self.linears.append(linear)
            self.linear_of[id(node)] = linear
        if len(found) > 1:
            self.parts_of[id(node)] = self.linears[-len(found) :]
        return bool(found)

    @staticmethod
    def _row_count(weight: InitializerView) -> int:
        if weight.decoder is not None and weight.decoder.op == "MatMulNBits":
            count = weight.decoder.attributes.get("N", 0)
            return count if type(count) is int else 0
        return weight.shape[1 if weight.transposed else 0]

    def _next_bit(self) -> int:
        return 1 << (len(self.linears) + len(self.lookups))

    def _linear_weight(self, node: OnnxNode) -> InitializerView | None:
        """The weight of a linear layer, as [out, in]; None for other operations."""
        if node.op == "MatMulNBits" and node.domain == MICROSOFT:
            held = self.weight(node.inputs[1])
            return InitializerView(held.initializer, decoder=node) if held else None
        if node.op not in ("MatMul", "Gemm") or node.domain:
            return None
        weight = self.weight(node.inputs[1])
        if weight is None or len(weight.shape) != 2 or not is_weight(weight):
            return None
        plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
        if any(node.attributes.get(key, value) != value for key, value in plain.items()):
            raise UnsupportedError(f"{self.where}: {node} scales or transposes what it multiplies")
        as_stored = bool(node.attributes.get("transB", 0)) != weight.transposed
        return replace(weight, transposed=not as_stored)

    def _bias(self, node: OnnxNode) -> tuple[InitializerView | None, str]:
        """(bias or None, value with it added) of a linear layer."""
        at = {"Gemm": 2, "MatMulNBits": 5}.get(node.op)
        if at is not None and len(node.inputs) > at and node.inputs[at]:
            bias = self.weight(node.inputs[at])
            if bias is None or len(bias.shape) != 1:
                raise UnsupportedError(f"{self.where}: {node} adds something that is not a bias")
            return bias, node.outputs[0]
        added = self.added_to(node.outputs[0])
        bias = self.weight(added[0]) if added is not None else None
        if added is None or bias is None or not is_vector(bias):
            return None, node.outputs[0]
        return bias, added[1]

    def _find_norm(self, node: OnnxNode) -> None:
        if node.op in _NORMS:
            data, scale, shift = _NORMS[node.op]
            weight = self.weight(node.inputs[scale])
            bias = None
            if shift is not None and len(node.inputs) > shift and node.inputs[shift]:
                bias = self.weight(node.inputs[shift])
            if weight is not None:
                added = node.inputs[:2] if node.op.startswith("Skip") else (node.inputs[data],)
                self.norms.append(NormNode(node, added, node.outputs[0], weight, bias))
        elif node.op == "Mul" and not node.domain:
            for value, factor in (node.inputs[:2], node.inputs[1::-1]):
                weight = self.weight(factor)
                if weight is not None and is_vector(weight) and self.weight(value) is None:
                    self.norms.append(NormNode(node, (value,), node.outputs[0], weight, None))


def _stacked(values: Values, node: OnnxNode) -> list[Linear]:
    """The linear layers, still without bits, whose matrices a node takes out of stacks: none, one, or the two
    of a whole mixture of experts."""
    if node.op == "MatMul" and not node.domain:
        found = [_picked(values, node, place) for place in (0, 1)]
        return [linear for linear in found if linear is not None]
    if node.op == "MoE" and node.domain == MICROSOFT:
        return _mixture(values, node)
    return []


def _picked(values: Values, node: OnnxNode, place: int) -> Linear | None:
    """A product with matrices that were picked out of a stack, one for each token: [out, in] times a column,
    or a row times [in, out]."""
    picked = _pick(values, node.inputs[place], 3)
    after = values.consumers.get(node.outputs[0], [])
    if picked is None or len(after) != 1 or after[0].op != "Squeeze" or len(after[0].inputs) < 2:
        return None
    if values.integers(after[0].inputs[1]) not in (([-1], [2]) if place == 0 else ([-2], [1])):
        return None
    (weight, chosen), output = picked, after[0].outputs[0]
    rows = weight.initializer.shape[1 if place == 0 else 2]
    bias, output = _bias(values, output, chosen)
    weight = InitializerView(weight.initializer, transposed=place == 1)
    return Linear(0, node, node.inputs[1 - place], output, rows, weight, bias, 2, chosen)


def _pick(values: Values, value: str, axes: int) -> tuple[InitializerView, str] | None:
    """(stack, what says which of it) of a value that was picked out of a stack with so many axes."""
    pick = values.producer.get(value)
    if pick is None or pick.op not in ("GatherND", "Gather") or pick.domain:
        return None
    if pick.attributes.get("batch_dims", 0) or pick.attributes.get("axis", 0):
        return None
    weight = values.weight(pick.inputs[0])
    if weight is None or weight.transposed or len(weight.initializer.shape) != axes or not is_weight(weight):
        return None
    return weight, pick.inputs[1]


def _bias(values: Values, output: str, chosen: str) -> tuple[InitializerView | None, str]:
    """(bias or None, value with it added), where it was picked in the same way."""
    added = values.added_to(output)
    picked = _pick(values, added[0], 2) if added is not None else None
    if added is None or picked is None or picked[1] != chosen:
        return None, output
    return picked[0], added[1]


def _mixture(values: Values, node: OnnxNode) -> list[Linear]:
    """The first and second layers of experts, the first two of them alternating in one stack."""
    inside = f"{node.outputs[0]}, inside"
    found = []
    for place, data, output in ((2, node.inputs[0], inside), (4, inside, node.outputs[0])):
        weight = values.weight(node.inputs[place])
        given = node.inputs[place + 1] if len(node.inputs) > place + 1 else ""
        bias = values.weight(given) if given else None
        if weight is None or len(weight.initializer.shape) != 3 or (given and bias is None):
            return []
        rows = weight.initializer.shape[1]
        found.append(Linear(0, node, data, output, rows, weight, bias, 2, node.inputs[1]))
    return found
