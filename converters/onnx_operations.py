"""The operations of an ONNX graph that hold weights: linear layers, looked-up tables, norms.

Every linear layer and every table gets a bit, by which :mod:`nemoconv.converters.onnx_dataflow` tells what
feeds what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from nemoconv.errors import CorruptCheckpoint, UnsupportedError
from nemoconv.formats.onnx_file import Initializer, Node, OnnxFile

MICROSOFT: Final = "com.microsoft"
#: norms by operation: positions of the input, of the weight and of the bias
_NORMS: Final[dict[str, tuple[int, int, int | None]]] = {
    "RMSNormalization": (0, 1, None),
    "SimplifiedLayerNormalization": (0, 1, None),
    "LayerNormalization": (0, 1, 2),
    "SkipSimplifiedLayerNormalization": (0, 2, None),
    "SkipLayerNormalization": (0, 2, 3),
}
#: how many inputs an operation must have that is looked at here
_LEAST: Final = {
    "MatMul": 2, "Gemm": 2, "MatMulNBits": 3, "Gather": 2, "GatherBlockQuantized": 3, "Transpose": 1,
    "Reshape": 1, "Cast": 1, "CastLike": 2, "Identity": 1, "DequantizeLinear": 2, "Add": 2, "Mul": 2,
    "Softmax": 1,
    "Attention": 3, "GroupQueryAttention": 3, "RMSNormalization": 2, "SimplifiedLayerNormalization": 2,
    "LayerNormalization": 2, "SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 3,
}  # fmt: skip
_CONSTANTS: Final = ("value_float", "value_int", "value_ints")
#: bytes of a constant that is looked at
_SMALL: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer as an operation sees it: perhaps transposed, with 1 added, or decoded by ``decoder``
    (a DequantizeLinear or MatMulNBits node). ``rows``: only these (first, count) of what it is then."""

    initializer: Initializer
    transposed: bool = False
    plus_one: bool = False
    decoder: Node | None = None
    rows: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return self.initializer.name


@dataclass(frozen=True, slots=True)
class Linear:
    """A multiplication with a weight; ``weight`` as [out, in]. ``output`` is what it gives, bias added.

    Where the graph splits the result at once, each piece is a linear layer of its own.
    """

    bit: int
    node: Node
    data: str
    output: str
    weight: Weight
    bias: Weight | None


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows taken from a table."""

    bit: int
    node: Node
    weight: Weight


@dataclass(frozen=True, slots=True)
class Norm:
    """A multiplication of each element of the last axis with a weight."""

    node: Node
    data: str
    output: str
    weight: Weight
    bias: Weight | None


class Operations:
    """The weights of a graph where they are used.

    Raises CorruptCheckpoint for nodes out of order, UnsupportedError for sub-graphs and functions.
    """

    def __init__(self, onnx: OnnxFile) -> None:
        onnx.require_plain(("sub-graphs", "functions", "sparse initializers"))
        self.onnx = onnx
        self.where = onnx.file.path
        self.producer: dict[str, Node] = {}
        self.consumers: dict[str, list[Node]] = {}
        self.linears: list[Linear] = []
        self.lookups: list[Lookup] = []
        self.norms: list[Norm] = []
        #: the linear layers that a node is, and the lookup that it is, by the node's id
        self.linears_of: dict[int, list[Linear]] = {}
        self.lookup_of: dict[int, Lookup] = {}
        #: linear layers that are a piece of a split result, by the piece
        self.piece_of: dict[str, Linear] = {}
        self._index()
        self._find_weights()

    def weight(self, value: str) -> Weight | None:
        """The initializer that ``value`` is, seen through casts, transposes and decoders."""
        transposed = plus_one = False
        decoder: Node | None = None
        while value not in self.onnx.initializers:
            node = self.producer.get(value)
            if node is None or node.domain not in ("", MICROSOFT):
                return None
            if node.op == "Transpose" and node.attributes.get("perm", (1, 0)) == (1, 0):
                transposed = not transposed
            elif node.op == "DequantizeLinear" and decoder is None:
                decoder = node
            elif node.op == "Add" and not plus_one and any(map(self._is_one, node.inputs)):
                plus_one = True
                value = node.inputs[1] if self._is_one(node.inputs[0]) else node.inputs[0]
                continue
            elif node.op not in ("Cast", "CastLike", "Identity"):
                return None
            value = node.inputs[0]
        return Weight(self.onnx.initializers[value], transposed, plus_one, decoder)

    def _index(self) -> None:
        known = {value.name for value in self.onnx.inputs} | set(self.onnx.initializers) | {""}
        for node in self.onnx.nodes:
            if len(node.inputs) < _LEAST.get(node.op, 0):
                raise CorruptCheckpoint(f"{self.where}: {node} has {len(node.inputs)} inputs")
            for value in node.inputs:
                if value not in known:
                    raise CorruptCheckpoint(f"{self.where}: {node} uses {value!r} before anything gives it")
                self.consumers.setdefault(value, []).append(node)
            for value in node.outputs:
                if value and value in known:
                    raise CorruptCheckpoint(f"{self.where}: two operations give {value!r}")
                if value:
                    known.add(value)
                    self.producer[value] = node

    def _is_one(self, value: str) -> bool:
        array = self._constant(value)
        return bool(array is not None and array.size == 1 and array.reshape(()) == 1)

    def _find_weights(self) -> None:
        for node in self.onnx.nodes:
            weight = self._linear_weight(node)
            if weight is not None:
                self._add_linear(node, weight)
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
            known = table is not None and len(table.initializer.shape) == 2 and _is_weight(table)
            return table if known else None
        reshape = self.producer.get(node.inputs[0])
        packed = reshape.inputs[0] if reshape is not None and reshape.op == "Reshape" else node.inputs[0]
        held = self.onnx.initializers.get(packed)
        return Weight(held, decoder=node) if held is not None else None

    def _add_linear(self, node: Node, weight: Weight) -> None:
        bias, output = self._bias(node)
        pieces = self._pieces(output) or [(output, None)]
        for value, rows in pieces:
            linear = Linear(
                self._next_bit(), node, node.inputs[0], value, replace(weight, rows=rows),
                replace(bias, rows=rows) if bias else None,
            )  # fmt: skip
            self.linears.append(linear)
            self.linears_of.setdefault(id(node), []).append(linear)
            if rows is not None:
                self.piece_of[value] = linear

    def _pieces(self, value: str) -> list[tuple[str, tuple[int, int] | None]]:
        """(value, rows) of the pieces into which a Split along the last axis cuts a value."""
        after = self.consumers.get(value, [])
        if len(after) != 1 or after[0].op != "Split" or len(after[0].inputs) < 2:
            return []
        (split,) = after
        sizes = self._integers(split.inputs[1])
        if (
            sizes is None
            or len(sizes) != len(split.outputs)
            or split.attributes.get("axis", 0) not in (-1, 2)
        ):
            raise UnsupportedError(f"{self.where}: {split} cuts a projection in a way that is not known")
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [(v, run) for v, run in zip(split.outputs, zip(firsts, sizes, strict=True), strict=True)]

    def _integers(self, value: str) -> list[int] | None:
        """The numbers of a constant."""
        array = self._constant(value)
        return None if array is None else [int(number) for number in array.ravel()]

    def _constant(self, value: str) -> Any:
        """A small constant as an array, None for what is computed."""
        node = self.producer.get(value)
        if node is not None and node.op == "Constant" and "value" in node.attributes:
            from onnx import numpy_helper

            return numpy_helper.to_array(node.attributes["value"])
        if node is not None and node.op == "Constant":
            import numpy

            given = [node.attributes[key] for key in _CONSTANTS if key in node.attributes]
            return numpy.array(given[0]) if given else None
        held = self.onnx.initializers.get(value)
        if held is None or held.type.dtype is None or held.nbytes > _SMALL:
            return None
        return held.values()

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
        if weight is None or len(weight.initializer.shape) != 2 or not _is_weight(weight):
            return None
        plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
        if any(node.attributes.get(key, value) != value for key, value in plain.items()):
            raise UnsupportedError(f"{self.where}: {node} scales or transposes what it multiplies")
        as_stored = bool(node.attributes.get("transB", 0)) != weight.transposed
        return Weight(weight.initializer, not as_stored, weight.plus_one, weight.decoder)

    def _bias(self, node: Node) -> tuple[Weight | None, str]:
        """(bias or None, value with it added) of a linear layer."""
        at = {"Gemm": 2, "MatMulNBits": 5}.get(node.op)
        if at is not None and len(node.inputs) > at and node.inputs[at]:
            bias = self.weight(node.inputs[at])
            if bias is None or len(bias.initializer.shape) != 1:
                raise UnsupportedError(f"{self.where}: {node} adds something that is not a bias")
            return bias, node.outputs[0]
        after = self.consumers.get(node.outputs[0], [])
        if len(after) != 1 or after[0].op != "Add":
            return None, node.outputs[0]
        (add,) = after
        other = add.inputs[1] if add.inputs[0] == node.outputs[0] else add.inputs[0]
        bias = self.weight(other)
        if bias is None or not _is_vector(bias):
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
                self.norms.append(Norm(node, node.inputs[data], node.outputs[0], weight, bias))
        elif node.op == "Mul" and not node.domain:
            for value, factor in (node.inputs[:2], node.inputs[1::-1]):
                weight = self.weight(factor)
                if weight is not None and _is_vector(weight) and self.weight(value) is None:
                    self.norms.append(Norm(node, value, node.outputs[0], weight, None))


def _is_weight(weight: Weight) -> bool:
    kind = weight.initializer.type
    return weight.decoder is not None or kind.dtype is None or kind.dtype.is_floating_point


def _is_vector(weight: Weight) -> bool:
    shape = weight.initializer.shape
    return len(shape) == 1 and shape[0] > 1 and _is_weight(weight)
