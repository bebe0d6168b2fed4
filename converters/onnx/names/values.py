"""The values of an ONNX graph: the node that produces each, the nodes that consume it, and what it holds.

A value is an input of the graph, an initializer (a stored tensor) or the output of a node. A weight seldom
reaches its consumer as it is stored: exporters put a Transpose, a Cast or a DequantizeLinear in between, or
take one matrix of a stack. :meth:`Values.weight` looks through those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ....errors import CorruptCheckpoint, UnsafeCheckpoint
from ....formats.onnx.file import Initializer, OnnxFile, OnnxNode

MICROSOFT: Final = "com.microsoft"
#: how many inputs an operation must have that is looked at here
_LEAST: Final = {
    "MatMul": 2, "Gemm": 2, "MatMulNBits": 3, "Gather": 2, "GatherBlockQuantized": 3, "Transpose": 1,
    "Reshape": 2, "Cast": 1, "CastLike": 2, "Identity": 1, "DequantizeLinear": 2, "Add": 2, "Mul": 2,
    "Softmax": 1, "MoE": 5, "TopK": 1, "OneHot": 1, "Squeeze": 1, "GatherND": 2,
    "Attention": 3, "GroupQueryAttention": 3, "RMSNormalization": 2, "SimplifiedLayerNormalization": 2,
    "LayerNormalization": 2, "SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 3,
}  # fmt: skip
_CONSTANTS: Final = ("value_float", "value_int", "value_ints")
#: operations by which exporters make one number of a list of sizes
_ONE_NUMBER: Final = frozenset({"Unsqueeze", "Reshape", "Gather"})
#: bytes of a constant that is looked at
_SMALL: Final = 1 << 10

#: attributes that are looked at, by their type
_KINDS: Final = {"axis": int, "perm": tuple, "start": int, "end": int, "transB": int, "batch_dims": int}
_LOOKED_AT: Final = frozenset({*_LEAST, "Split", "Slice", "Concat", "Shape", "ScatterElements", "NonZero"})


class Rows(NamedTuple):
    """Of every ``period`` rows, the ``length`` from ``first`` on."""

    first: int
    length: int
    period: int


@dataclass(frozen=True, slots=True)
class InitializerView:
    """An initializer as its consumer sees it: perhaps transposed, with 1 added, or decoded by ``decoder``
    (a DequantizeLinear or MatMulNBits node). ``rows``: only these of what it is then. ``item``: only this
    one of the matrices that are stacked in it. ``flat``: its elements as a vector."""

    initializer: Initializer
    transposed: bool = False
    plus_one: bool = False
    decoder: OnnxNode | None = None
    rows: Rows | None = None
    item: int | None = None
    flat: bool = False

    @property
    def name(self) -> str:
        return self.initializer.name

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored: of one of several, without the axis along which they are stacked."""
        return self.initializer.shape[0 if self.item is None else 1 :]


def is_weight(weight: InitializerView) -> bool:
    kind = weight.initializer.type
    return weight.decoder is not None or kind.dtype is None or kind.dtype.is_floating_point


def is_vector(weight: InitializerView) -> bool:
    shape = weight.shape
    return len(shape) == 1 and shape[0] > 1 and is_weight(weight)


class Values:
    """The values of a graph by name, with the producer and the consumers of each.

    Raises CorruptCheckpoint for nodes out of order, UnsupportedError for sub-graphs and functions.
    """

    def __init__(self, onnx: OnnxFile) -> None:
        onnx.require_plain(("sub-graphs", "functions", "sparse initializers"))
        self.onnx = onnx
        self.where = onnx.file.path
        self.producer: dict[str, OnnxNode] = {}
        self.consumers: dict[str, list[OnnxNode]] = {}
        self._index()

    def integers(self, value: str) -> list[int] | None:
        """The whole numbers of a constant; None for what is computed."""
        array = self.constant(value)
        if array is None or array.dtype.kind not in "iu":
            return None
        return [int(number) for number in array.ravel()]

    def shape_told(self, value: str) -> list[int | None]:
        """The sizes that a Reshape is given, None for those that are computed; empty where even their
        number is unknown."""
        told = self.integers(value)
        if told is not None:
            return [*told]
        node = self.producer.get(value)
        if node is None or node.op != "Concat":
            return []
        found: list[int | None] = []
        for part in node.inputs:
            constant, maker = self.integers(part), self.producer.get(part)
            if constant is not None:
                found += constant
            elif maker is not None and (maker.op in _ONE_NUMBER or _picks_one(maker)):
                found.append(None)
            else:
                return []
        return found

    def constant(self, value: str) -> Any:
        """A small constant as an array, None for what is computed."""
        node = self.producer.get(value)
        if node is not None and node.op == "Constant" and "value" in node.attributes:
            return self._tensor(node)
        if node is not None and node.op == "Constant":
            import numpy

            given = [node.attributes[key] for key in _CONSTANTS if key in node.attributes]
            return numpy.array(given[0]) if given else None
        held = self.onnx.initializers.get(value)
        if held is None or held.type.dtype is None or held.nbytes > _SMALL:
            return None
        return held.values()

    def added_to(self, value: str) -> tuple[str, str] | None:
        """(the other operand, the sum) where an Add is the only consumer of ``value``."""
        after = self.consumers.get(value, [])
        if len(after) != 1 or after[0].op != "Add":
            return None
        (add,) = after
        return add.inputs[1] if add.inputs[0] == value else add.inputs[0], add.outputs[0]

    def weight(self, value: str) -> InitializerView | None:
        """The initializer that ``value`` is, seen through casts, transposes and decoders, or one of the
        matrices that are stacked in it; None for what the graph computes."""
        transposed = plus_one = False
        decoder: OnnxNode | None = None
        item: int | None = None
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
            elif node.op == "Gather" and item is None and not (transposed or plus_one):
                item = self._item(node)
                if item is None:
                    return None
            elif node.op not in ("Cast", "CastLike", "Identity"):
                return None
            value = node.inputs[0]
        held = self.onnx.initializers[value]
        if item is not None and (len(held.shape) < 2 or not 0 <= item < held.shape[0]):
            return None
        return InitializerView(held, transposed, plus_one, decoder, item=item)

    def _tensor(self, node: OnnxNode) -> Any:
        """The tensor that a Constant holds."""
        from onnx import TensorProto, numpy_helper

        held = node.attributes["value"]
        if not isinstance(held, TensorProto):
            raise CorruptCheckpoint(f"{self.where}: {node} holds {held!r}, not a tensor")
        if held.data_location == TensorProto.EXTERNAL or held.external_data:
            raise UnsafeCheckpoint(f"{self.where}: {node} has its elements in another file")
        try:
            return numpy_helper.to_array(held)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptCheckpoint(f"{self.where}: {node} has no elements ({error})") from None

    def _item(self, gather: OnnxNode) -> int | None:
        """The one constant index along the first axis at which an operation takes something."""
        index = self.constant(gather.inputs[1])
        if gather.attributes.get("axis", 0) or index is None or index.shape or index.dtype.kind not in "iu":
            return None
        return int(index)

    def _is_one(self, value: str) -> bool:
        array = self.constant(value)
        return bool(array is not None and array.size == 1 and array.reshape(()) == 1)

    def _index(self) -> None:
        known = {value.name for value in self.onnx.inputs} | set(self.onnx.initializers) | {""}
        for node in self.onnx.nodes:
            if len(node.inputs) < _LEAST.get(node.op, 0):
                raise CorruptCheckpoint(f"{self.where}: {node} has {len(node.inputs)} inputs")
            for name, told in node.attributes.items() if node.op in _LOOKED_AT else ():
                if not isinstance(told, _KINDS.get(name, object)):
                    raise CorruptCheckpoint(f"{self.where}: {node} has {name}={told!r}")
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


def _picks_one(shape: OnnxNode) -> bool:
    """Whether an operation gives one size of a shape."""
    first, end = (shape.attributes.get(name) for name in ("start", "end"))
    return shape.op == "Shape" and type(end) is int and end - (first or 0) == 1
