"""Which weights feed which in an ONNX graph, and where its attentions are.

Exporters rename, transpose and reorder, but they cannot change what feeds what. The *sources* of a value are
the linear layers and looked-up tables whose output reaches it without passing through another linear layer;
its *sinks* are the linear layers that it reaches in the same way. Both are numbers with one bit for each
layer or table (:mod:`nemoconv.converters.onnx.names.consumers`). With these two the parts of a transformer
can be told from one another (:mod:`nemoconv.converters.onnx.names.places`).

An *attention sink* is something else: a logit for each head that takes part in the softmax and has no value.
onnxruntime's operator is given them as an input; elsewhere they are one more column of the scores, or of the
mask that is added to the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ....errors import UnsupportedError
from ....formats.onnx.file import OnnxFile, OnnxNode
from .consumers import Consumers, Linear
from .values import MICROSOFT, InitializerView, Values, is_weight

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
#: the position of the input that is attention sinks, or a mask or scores with them
_SINKS: Final = {"GroupQueryAttention": 11, "Attention": 3, "Softmax": 0}
_MOST: Final = 8  # operations in a row that only move or repeat elements
_MOVED: Final = frozenset({"Expand", "Reshape", "Unsqueeze", "Cast", "CastLike"})


@dataclass(frozen=True, slots=True)
class AttentionOperands:
    """The values that are query, key and value of an attention, whose node is its operator or its Softmax.
    ``packed``: they are one value, in this order along its last axis. ``sinks``: a logit for each head that
    takes part in the softmax and has no value."""

    node: OnnxNode
    query: str
    key: str
    value: str
    packed: bool
    sinks: InitializerView | None = None


class Dataflow(Consumers):
    """The graph, read once forwards and once backwards."""

    def __init__(self, onnx: OnnxFile) -> None:
        super().__init__(onnx)
        self.sources: dict[str, int] = {}
        self.sinks: dict[str, int] = {}
        self._order = {id(node): number for number, node in enumerate(onnx.nodes)}
        self._flow_forwards()
        self._flow_backwards()

    @cached_property
    def attentions(self) -> list[AttentionOperands]:
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
        """Types of the nodes on the way from a value to the linear layers that it reaches."""

        def onwards(node: OnnxNode) -> Iterable[str] | None:
            return None if id(node) in self.linear_of or node.op in _SHAPE_ONLY else node.outputs

        return {node.op for node in self.passed([start], onwards, forwards=True)}

    def after(self, start: str) -> list[OnnxNode]:
        """The nodes that a value reaches before the next linear layers, in the order of the graph."""

        def onwards(node: OnnxNode) -> Iterable[str] | None:
            return None if self.has_weight(node) or node.op in _SHAPE_ONLY else node.outputs

        found = {self._order[id(node)]: node for node in self.passed([start], onwards, forwards=True)}
        return [found[number] for number in sorted(found)]

    def inputs_of(self, value: str) -> set[str]:
        """The inputs of the graph whose elements a value is made from."""

        def back(node: OnnxNode) -> Iterable[str] | None:
            return None if node.op in _SHAPE_ONLY else self.read(node)

        made_of = {value}
        for node in self.passed([value], back, forwards=False):
            made_of.update(self.read(node))
        return {given.name for given in self.onnx.inputs} & made_of

    def has_weight(self, node: OnnxNode) -> bool:
        """Whether a node is a linear layer or looks up a table."""
        return id(node) in self.linear_of or id(node) in self.lookup_of

    def passed(
        self, start: Iterable[str], onwards: Callable[[OnnxNode], Iterable[str] | None], *, forwards: bool
    ) -> Iterator[OnnxNode]:
        """The nodes on the ways from some values, to consumers or (not ``forwards``) to producers; a node may
        come several times. ``onwards`` gives the values to go on with behind a node, None for one that is not
        passed."""
        todo = list(start)
        seen = set(todo)
        while todo:
            value = todo.pop()
            maker = self.producer.get(value)
            for node in self.consumers.get(value, ()) if forwards else (maker,) if maker else ():
                following = onwards(node)
                if following is None:
                    continue
                yield node
                new = [name for name in following if name and name not in seen]
                seen.update(new)
                todo += new

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
    def read(node: OnnxNode) -> tuple[str, ...]:
        """The inputs whose elements a result depends on."""
        return node.inputs[:1] if node.op == "CastLike" else node.inputs

    def _reaches(self, value: str, mask: int) -> None:
        self.sinks[value] = self.sinks.get(value, 0) | mask

    def _find_attentions(self) -> Iterator[AttentionOperands]:
        for node in self.onnx.nodes:
            if (node.domain, node.op) in ATTENTIONS:
                bias = ATTENTIONS[node.domain, node.op]
                if bias is not None and len(node.inputs) > bias and node.inputs[bias]:
                    raise UnsupportedError(f"{self.where}: {node} adds biases that belong to projections")
                query, key, value = (*node.inputs, "", "")[:3]
                sinks = _sinks_of(self, node)
                if key or value:
                    yield AttentionOperands(node, query, key, value, packed=False, sinks=sinks)
                else:
                    yield AttentionOperands(node, query, query, query, packed=True, sinks=sinks)
            elif node.op == "Softmax" and self.sources.get(node.inputs[0]):
                scores = self._search(node.inputs, forwards=False)
                if scores:  # else it is a router's, or a head's
                    yield self._around_softmax(node, scores)

    def _around_softmax(self, softmax: OnnxNode, scores: Mapping[int, OnnxNode]) -> AttentionOperands:
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
        return AttentionOperands(softmax, *operands, packed=False, sinks=_sinks_of(self, softmax))

    def _search(self, start: tuple[str, ...], *, forwards: bool) -> dict[int, OnnxNode]:
        """The nearest products of two values that linear layers feed."""

        def multiplies(node: OnnxNode) -> bool:
            return node.op == "MatMul" and all(self.sources.get(value) for value in node.inputs)

        def onwards(node: OnnxNode) -> Iterable[str] | None:
            if self.has_weight(node) or node.op in _SHAPE_ONLY:
                return None
            return () if multiplies(node) else node.outputs if forwards else self.read(node)

        passed = self.passed(start, onwards, forwards=forwards)
        return {id(node): node for node in passed if multiplies(node)}

    def _depends(self, value: str, node: OnnxNode) -> bool:
        """Whether a value is made from what a node gives, which has no weight."""

        def back(made: OnnxNode) -> Iterable[str] | None:
            return None if self.has_weight(made) else self.read(made)

        return any(made is node for made in self.passed([value], back, forwards=False))


def _sinks_of(values: Values, node: OnnxNode) -> InitializerView | None:
    """The sinks of an attention, or of a softmax that is one, as a vector; None where it has none."""
    place = _SINKS.get(node.op)
    value = node.inputs[place] if place is not None and len(node.inputs) > place else ""
    if not value or node.op == "GroupQueryAttention":
        return _vector(values, value) if value else None
    made = values.producer.get(value)
    while made is not None and made.op in ("Cast", "Identity", "Sub"):  # less the greatest of a row
        made = values.producer.get(made.inputs[0])
    if made is None or made.op != "Concat" or len(made.inputs) != 2:
        return None
    return _vector(values, made.inputs[1])


def _vector(values: Values, value: str, depth: int = 0) -> InitializerView | None:
    """The one weight with a single axis that a value is made of, perhaps repeated, or added to nothing."""
    held = values.onnx.initializers.get(value)
    if held is not None:
        weight = InitializerView(held, flat=True)
        return weight if sum(size > 1 for size in held.shape) == 1 and is_weight(weight) else None
    made = values.producer.get(value)
    if made is None or depth > _MOST:
        return None
    if made.op == "Add":
        found = [_vector(values, one, depth + 1) for one in made.inputs[:2]]
        return next((weight for weight in found if weight is not None), None)
    return _vector(values, made.inputs[0], depth + 1) if made.op in _MOVED else None


def _union(masks: Iterable[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result
