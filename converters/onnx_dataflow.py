"""What feeds what in an ONNX graph, and where its attention is.

Exporters rename, transpose and reorder, but they cannot change what feeds what. A value's *sources* are the
linear layers and looked-up tables whose output reaches it without passing through another linear layer, its
*sinks* the linear layers that it reaches in the same way, both as sets of bits. With these two a
transformer's parts can be told from one another (:mod:`nemoconv.converters.onnx_places`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from nemoconv.converters.onnx_operations import MICROSOFT, Linear, Operations
from nemoconv.errors import UnsupportedError
from nemoconv.formats.onnx_file import Node, OnnxFile

#: operations whose result depends on no element of their input
_SHAPE_ONLY: Final = frozenset({"Shape", "Size"})
#: operations that are a whole attention, with query, key and value as their first inputs and the keys and
#: values so far as their second and third outputs
_ATTENTIONS: Final = {
    ("", "Attention"): None,
    (MICROSOFT, "GroupQueryAttention"): None,
    (MICROSOFT, "MultiHeadAttention"): 3,  # the position of a bias that belongs to the projections
}
ACTIVATIONS: Final = frozenset(
    {"Sigmoid", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Erf", "Tanh", "Swish", "Relu", "HardSigmoid"}
)


@dataclass(frozen=True, slots=True)
class Attention:
    """Values that are query, key and value of an attention. ``packed``: they are one value, in this
    order along its last axis."""

    node: Node
    query: str
    key: str
    value: str
    packed: bool


class Dataflow(Operations):
    """The graph, read once forwards and once backwards."""

    def __init__(self, onnx: OnnxFile) -> None:
        super().__init__(onnx)
        self.sources: dict[str, int] = {}
        self.sinks: dict[str, int] = {}
        self._flow_forwards()
        self._flow_backwards()

    @cached_property
    def attentions(self) -> list[Attention]:
        """In the order of the graph. Raises UnsupportedError for a Softmax that is no attention."""
        return list(self._find_attentions())

    def linear_mask(self) -> int:
        """All linear layers."""
        mask = 0
        for linear in self.linears:
            mask |= linear.bit
        return mask

    def one(self, mask: int) -> Linear | None:
        """The linear layer whose bit alone is set."""
        return next((linear for linear in self.linears if linear.bit == mask), None)

    def between(self, start: str) -> set[str]:
        """Operations on the way from a value to the linear layers that it reaches."""
        seen, todo, found = {start}, [start], set()
        while todo:
            for node in self.consumers.get(todo.pop(), ()):
                if id(node) in self.linears_of or node.op in _SHAPE_ONLY:
                    continue
                found.add(node.op)
                new = [output for output in node.outputs if output and output not in seen]
                seen.update(new)
                todo += new
        return found

    def _flow_forwards(self) -> None:
        for node in self.onnx.nodes:
            inputs = [self.sources.get(value, 0) for value in self._read(node)]
            linears, lookup = self.linears_of.get(id(node)), self.lookup_of.get(id(node))
            if linears:
                masks = [_union(linear.bit for linear in linears)] * len(node.outputs)
            elif lookup:
                masks = [lookup.bit] * len(node.outputs)
            elif node.op == "Split" and node.outputs[0] in self.piece_of:
                masks = [self.piece_of[value].bit for value in node.outputs]
            elif node.op in _SHAPE_ONLY:
                masks = [0] * len(node.outputs)
            else:
                masks = [_union(inputs)] * len(node.outputs)
                if (node.domain, node.op) in _ATTENTIONS and len(masks) > 2:
                    # what is kept of keys and values depends on nothing else
                    packed = not any(node.inputs[1:3])
                    masks[1:3] = [inputs[0]] * 2 if packed else [*inputs[1:3], 0, 0][:2]
            self.sources.update(pair for pair in zip(node.outputs, masks, strict=True) if pair[0])

    def _flow_backwards(self) -> None:
        for node in reversed(self.onnx.nodes):
            linears = self.linears_of.get(id(node))
            if linears:
                self._reaches(node.inputs[0], _union(linear.bit for linear in linears))
            elif node.op not in _SHAPE_ONLY and id(node) not in self.lookup_of:
                mask = _union(self.sinks.get(value, 0) for value in node.outputs if value)
                for value in self._read(node):
                    self._reaches(value, mask)

    @staticmethod
    def _read(node: Node) -> tuple[str, ...]:
        """The inputs whose elements a result depends on."""
        return node.inputs[:1] if node.op == "CastLike" else node.inputs

    def _reaches(self, value: str, mask: int) -> None:
        self.sinks[value] = self.sinks.get(value, 0) | mask

    def _find_attentions(self) -> Iterator[Attention]:
        for node in self.onnx.nodes:
            if (node.domain, node.op) in _ATTENTIONS:
                bias = _ATTENTIONS[node.domain, node.op]
                if bias is not None and len(node.inputs) > bias and node.inputs[bias]:
                    raise UnsupportedError(f"{self.where}: {node} adds biases that belong to projections")
                if node.attributes.get("rotary_interleaved"):
                    raise UnsupportedError(f"{self.where}: {node} rotates neighbours, not halves")
                query, key, value = (*node.inputs, "", "")[:3]
                if key or value:
                    yield Attention(node, query, key, value, packed=False)
                else:
                    yield Attention(node, query, query, query, packed=True)
            elif node.op == "Softmax" and self.sources.get(node.inputs[0]):
                yield self._around_softmax(node)

    def _around_softmax(self, softmax: Node) -> Attention:
        """Attention as softmax(query @ key) @ value: the softmax is along keys, so its rows are queries."""
        if softmax.attributes.get("axis", -1) not in (-1, 3):
            raise UnsupportedError(f"{self.where}: {softmax} is not along the last axis")
        scores = self._search(softmax.inputs, forwards=False)
        result = self._search(softmax.outputs, forwards=True)
        if len(scores) != 1 or len(result) != 1:
            raise UnsupportedError(
                f"{self.where}: {softmax} lies between {len(scores)} and {len(result)} matrix products, "
                "so it is no attention that is known here"
            )
        (product,), (mixed,) = scores.values(), result.values()
        if not self.sources.get(mixed.inputs[1]) or self._depends(mixed.inputs[1], softmax):
            raise UnsupportedError(f"{self.where}: {mixed} does not weigh values by {softmax}")
        return Attention(softmax, product.inputs[0], product.inputs[1], mixed.inputs[1], packed=False)

    def _search(self, start: tuple[str, ...], *, forwards: bool) -> dict[int, Node]:
        """The nearest products of two values that linear layers feed."""
        seen, todo = set(start), list(start)
        found: dict[int, Node] = {}
        while todo:
            value = todo.pop()
            producer = self.producer.get(value)
            near = self.consumers.get(value, []) if forwards else [producer] if producer else []
            for node in near:
                if id(node) in self.linears_of or id(node) in self.lookup_of or node.op in _SHAPE_ONLY:
                    continue
                if node.op == "MatMul" and all(self.sources.get(value) for value in node.inputs):
                    found[id(node)] = node
                    continue
                new = [v for v in (node.outputs if forwards else self._read(node)) if v and v not in seen]
                seen.update(new)
                todo += new
        return found

    def _depends(self, value: str, node: Node) -> bool:
        """Whether a value is made from what a node gives."""
        seen, todo = {value}, [value]
        while todo:
            made = self.producer.get(todo.pop())
            if made is node:
                return True
            if made is None or id(made) in self.linears_of or id(made) in self.lookup_of:
                continue
            new = [v for v in self._read(made) if v and v not in seen]
            seen.update(new)
            todo += new
        return False


def _union(masks: Iterable[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result
