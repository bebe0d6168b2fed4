"""The operations of an ONNX graph that hold weights: linear layers, looked-up tables, norms.

Every linear layer and every table gets a bit, by which :mod:`nemoconv.converters.onnx.names.dataflow`
tells what feeds what.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ....errors import UnsupportedError
from ....formats.onnx.file import Node, OnnxFile
from .stacks import stacks
from .values import MICROSOFT, Values
from .weighted import Linear, Lookup, Norm, Weight, is_vector, is_weight

#: norms by operation: positions of the input, of the weight and of the bias
_NORMS: Final[dict[str, tuple[int, int, int | None]]] = {
    "RMSNormalization": (0, 1, None),
    "SimplifiedLayerNormalization": (0, 1, None),
    "LayerNormalization": (0, 1, 2),
    "SkipSimplifiedLayerNormalization": (0, 2, None),
    "SkipLayerNormalization": (0, 2, 3),
}


class Operations(Values):
    """The weights of a graph where they are used. Raises the errors of :class:`Values`, UnsupportedError for
    products that are scaled."""

    def __init__(self, onnx: OnnxFile) -> None:
        super().__init__(onnx)
        self.linears: list[Linear] = []
        self.lookups: list[Lookup] = []
        self.norms: list[Norm] = []
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

    def _table(self, node: Node) -> Weight | None:
        """The table that a node looks rows up in, None for other uses of the operation."""
        if node.op == "Gather":
            table = self.weight(node.inputs[0])
            known = table is not None and len(table.initializer.shape) == 2 and is_weight(table)
            return table if known else None
        reshape = self.producer.get(node.inputs[0])
        packed = reshape.inputs[0] if reshape is not None and reshape.op == "Reshape" else node.inputs[0]
        held = self.onnx.initializers.get(packed)
        return Weight(held, decoder=node) if held is not None else None

    def _add_linear(self, node: Node, weight: Weight) -> None:
        bias, output = self._bias(node)
        rows = self._row_count(weight)
        # hidden states are [batch, sequence, features] unless a Gemm has flattened them
        rank = 2 if node.op == "Gemm" else 3
        linear = Linear(self._next_bit(), node, node.inputs[0], output, rows, weight, bias, rank)
        self.linears.append(linear)
        self.linear_of[id(node)] = linear

    def _add_stacked(self, node: Node) -> bool:
        """Whether an operation multiplies with matrices of experts; their stacks are added."""
        layers = stacks(self, node)
        for layer in layers:
            linear = Linear(self._next_bit(), node, *layer)
            self.linears.append(linear)
            self.linear_of[id(node)] = linear
        if len(layers) > 1:
            self.parts_of[id(node)] = self.linears[-len(layers) :]
        return bool(layers)

    @staticmethod
    def _row_count(weight: Weight) -> int:
        if weight.decoder is not None and weight.decoder.op == "MatMulNBits":
            count = weight.decoder.attributes.get("N", 0)
            return count if type(count) is int else 0
        return weight.shape[1 if weight.transposed else 0]

    def _next_bit(self) -> int:
        return 1 << (len(self.linears) + len(self.lookups))

    def _linear_weight(self, node: Node) -> Weight | None:
        """The weight of a linear layer, as [out, in]; None for other operations."""
        if node.op == "MatMulNBits" and node.domain == MICROSOFT:
            held = self.weight(node.inputs[1])
            return Weight(held.initializer, decoder=node) if held else None
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

    def _bias(self, node: Node) -> tuple[Weight | None, str]:
        """(bias or None, value with it added) of a linear layer."""
        at = {"Gemm": 2, "MatMulNBits": 5}.get(node.op)
        if at is not None and len(node.inputs) > at and node.inputs[at]:
            bias = self.weight(node.inputs[at])
            if bias is None or len(bias.shape) != 1:
                raise UnsupportedError(f"{self.where}: {node} adds something that is not a bias")
            return bias, node.outputs[0]
        after = self.consumers.get(node.outputs[0], [])
        if len(after) != 1 or after[0].op != "Add":
            return None, node.outputs[0]
        (add,) = after
        other = add.inputs[1] if add.inputs[0] == node.outputs[0] else add.inputs[0]
        bias = self.weight(other)
        if bias is None or not is_vector(bias):
            return None, node.outputs[0]
        return bias, add.outputs[0]

    def _find_norm(self, node: Node) -> None:
        if node.op in _NORMS:
            data, scale, shift = _NORMS[node.op]
            weight = self.weight(node.inputs[scale])
            bias = None
            if shift is not None and len(node.inputs) > shift and node.inputs[shift]:
                bias = self.weight(node.inputs[shift])
            if weight is not None:
                added = node.inputs[:2] if node.op.startswith("Skip") else (node.inputs[data],)
                self.norms.append(Norm(node, added, node.outputs[0], weight, bias))
        elif node.op == "Mul" and not node.domain:
            for value, factor in (node.inputs[:2], node.inputs[1::-1]):
                weight = self.weight(factor)
                if weight is not None and is_vector(weight) and self.weight(value) is None:
                    self.norms.append(Norm(node, (value,), node.outputs[0], weight, None))
