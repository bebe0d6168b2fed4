"""What feeds what in an ONNX graph, and where its attention is.

Exporters rename, transpose and reorder, but they cannot change what feeds what. A value's *sources* are the
linear layers and looked-up tables whose output reaches it without passing through another linear layer, its
*sinks* the linear layers that it reaches in the same way, both as sets of bits. With these two a
transformer's parts can be told from one another (:mod:`nemoconv.converters.onnx.names.places`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ....errors import UnsupportedError
from ....formats.onnx.file import Node, OnnxFile
from .operations import Operations
from .sinks import find_sinks
from .values import MICROSOFT
from .weighted import Linear, Weight

#: operations whose result depends on no element of their input
_SHAPE_ONLY: Final = frozenset({"Shape", "Size"})
#: operations that are a whole attention, with query, key and value as their first inputs and the keys and
#: values so far as their second and third outputs
ATTENTIONS: Final = {
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
    order along its last axis. ``sinks``: logits that take part in the softmax and have no value."""

    node: Node
    query: str
    key: str
    value: str
    packed: bool
    sinks: Weight | None = None


class Dataflow(Operations):
    """The graph, read once forwards and once backwards."""

    def __init__(self, onnx: OnnxFile) -> None:
        super().__init__(onnx)
        self.sources: dict[str, int] = {}
        self.sinks: dict[str, int] = {}
        self._order = {id(node): number for number, node in enumerate(onnx.nodes)}
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
                if id(node) in self.linear_of or node.op in _SHAPE_ONLY:
                    continue
                found.add(node.op)
                new = [output for output in node.outputs if output and output not in seen]
                seen.update(new)
                todo += new
        return found

    def after(self, start: str) -> list[Node]:
        """Operations that a value reaches before the next linear layers, in the order of the graph."""
        seen, todo, found = {start}, [start], {}
        while todo:
            for node in self.consumers.get(todo.pop(), ()):
                if id(node) in self.linear_of or id(node) in self.lookup_of or node.op in _SHAPE_ONLY:
                    continue
                found[self._order[id(node)]] = node
                new = [output for output in node.outputs if output and output not in seen]
                seen.update(new)
                todo += new
        return [found[number] for number in sorted(found)]

    def inputs_of(self, value: str) -> set[str]:
        """The inputs of the graph whose elements a value is made from."""
        seen, todo = {value}, [value]
        while todo:
            made = self.producer.get(todo.pop())
            if made is None or made.op in _SHAPE_ONLY:
                continue
            new = [v for v in self.read(made) if v and v not in seen]
            seen.update(new)
            todo += new
        return {given.name for given in self.onnx.inputs} & seen

    def _flow_forwards(self) -> None:
        for node in self.onnx.nodes:
            inputs = [self.sources.get(value, 0) for value in self.read(node)]
            linear = self.linear_of.get(id(node))
            weighted = linear or self.lookup_of.get(id(node))
            if weighted:
                # a whole mixture of experts also depends on the router
                router = self.sources.get(linear.chosen, 0) if linear and id(node) in self.parts_of else 0
                masks = [weighted.bit | router] * len(node.outputs)
                for part in self.parts_of.get(id(node), ())[:-1]:
                    self.sources[part.output] = part.bit
            elif node.op in _SHAPE_ONLY:
                masks = [0] * len(node.outputs)
            else:
                masks = [_union(inputs)] * len(node.outputs)
                if (node.domain, node.op) in ATTENTIONS and len(masks) > 2:
                    # what is kept of keys and values depends on nothing else
                    packed = not any(node.inputs[1:3])
                    masks[1:3] = [inputs[0]] * 2 if packed else [*inputs[1:3], 0, 0][:2]
            self.sources.update(pair for pair in zip(node.outputs, masks, strict=True) if pair[0])

    def _flow_backwards(self) -> None:
        for node in reversed(self.onnx.nodes):
            linear = self.linear_of.get(id(node))
            if linear:
                for part in self.parts_of.get(id(node), [linear]):
                    self._reaches(part.data, part.bit)
            elif node.op not in _SHAPE_ONLY and id(node) not in self.lookup_of:
                mask = _union(self.sinks.get(value, 0) for value in node.outputs if value)
                for value in self.read(node):
                    self._reaches(value, mask)

    @staticmethod
    def read(node: Node) -> tuple[str, ...]:
        """The inputs whose elements a result depends on."""
        return node.inputs[:1] if node.op == "CastLike" else node.inputs

    def _reaches(self, value: str, mask: int) -> None:
        self.sinks[value] = self.sinks.get(value, 0) | mask

    def _find_attentions(self) -> Iterator[Attention]:
        for node in self.onnx.nodes:
            if (node.domain, node.op) in ATTENTIONS:
                bias = ATTENTIONS[node.domain, node.op]
                if bias is not None and len(node.inputs) > bias and node.inputs[bias]:
                    raise UnsupportedError(f"{self.where}: {node} adds biases that belong to projections")
                query, key, value = (*node.inputs, "", "")[:3]
                sinks = find_sinks(self, node)
                if key or value:
                    yield Attention(node, query, key, value, packed=False, sinks=sinks)
                else:
                    yield Attention(node, query, query, query, packed=True, sinks=sinks)
            elif node.op == "Softmax" and self.sources.get(node.inputs[0]):
                scores = self._search(node.inputs, forwards=False)
                if scores:  # else it is a router's, or a head's
                    yield self._around_softmax(node, scores)

    def _around_softmax(self, softmax: Node, scores: Mapping[int, Node]) -> Attention:
        """Attention as softmax(query @ key) @ value: the softmax is along keys, so its rows are queries."""
        if softmax.attributes.get("axis", -1) not in (-1, 3):
            raise UnsupportedError(f"{self.where}: {softmax} is not along the last axis")
        result = self._search(softmax.outputs, forwards=True)
        if len(scores) != 1 or len(result) != 1:
            raise UnsupportedError(
                f"{self.where}: {softmax} lies between {len(scores)} and {len(result)} matrix products, "
                "so it is no attention that is known here"
            )
        (product,), (mixed,) = scores.values(), result.values()
        if not self.sources.get(mixed.inputs[1]) or self._depends(mixed.inputs[1], softmax):
            raise UnsupportedError(f"{self.where}: {mixed} does not weigh values by {softmax}")
        operands = product.inputs[0], product.inputs[1], mixed.inputs[1]
        return Attention(softmax, *operands, packed=False, sinks=find_sinks(self, softmax))

    def _search(self, start: tuple[str, ...], *, forwards: bool) -> dict[int, Node]:
        """The nearest products of two values that linear layers feed."""
        seen, todo = set(start), list(start)
        found: dict[int, Node] = {}
        while todo:
            value = todo.pop()
            producer = self.producer.get(value)
            near = self.consumers.get(value, []) if forwards else [producer] if producer else []
            for node in near:
                if id(node) in self.linear_of or id(node) in self.lookup_of or node.op in _SHAPE_ONLY:
                    continue
                if node.op == "MatMul" and all(self.sources.get(value) for value in node.inputs):
                    found[id(node)] = node
                    continue
                new = [v for v in (node.outputs if forwards else self.read(node)) if v and v not in seen]
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
            if made is None or id(made) in self.linear_of or id(made) in self.lookup_of:
                continue
            new = [v for v in self.read(made) if v and v not in seen]
            seen.update(new)
            todo += new
        return False


def _union(masks: Iterable[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result
