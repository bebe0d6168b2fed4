"""Which expert is which in a mixture of experts, proved from how the graph chooses tokens for each.

The rows of the router's weight number the experts. A graph takes the best of the router's scores (TopK), and
for every expert looks up the tokens that it was chosen for (NonZero): in a column of a matrix into which the
indices of the TopK were scattered, or at an index of the axis that a OneHot of these indices has added.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from ....formats.onnx.file import OnnxNode
from .consumers import Linear
from .dataflow import Dataflow
from .values import InitializerView

#: operations that leave the order of experts as it is
_SAME: Final = frozenset({"Cast", "CastLike", "Identity", "Softmax", "Sigmoid"})
#: operations that also take something else, and the first of their inputs that may be scores
_ADDED: Final = {"Add": 0, "Where": 1}
_RESHAPED: Final = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def expert_of(flow: Dataflow, linear: Linear, router: Linear) -> int | None:
    """The number of the expert that a linear layer belongs to, None where the graph does not tell."""
    chosen = _choices(flow, linear.data, router)
    if len(chosen) != 1:
        return None
    (node,) = chosen.values()
    value, made = _behind(flow, node.inputs[0], _RESHAPED)
    if made is None:
        return None
    if made.op == "Split":
        return _column(flow, made, value, router)
    return _one_hot(flow, made, router) if made.op == "Gather" else None


def picks_experts(flow: Dataflow, linear: Linear, router: Linear) -> bool:
    """Whether a layer multiplies each token with the matrices of the best experts, in the router's order."""
    if linear.weight.initializer.shape[0] != router.rows:
        return False
    if linear.node.op == "MoE":  # which is given all that the router gives
        return _is_given(flow, linear.chosen, router)
    value, _ = _behind(flow, linear.chosen, _RESHAPED)
    return _are_best(flow, value, router)


def _behind(flow: Dataflow, value: str, operations: Collection[str]) -> tuple[str, OnnxNode | None]:
    """(value, its producer) that a value is, seen through nodes of some types."""
    made = flow.producer.get(value)
    while made is not None and made.op in operations:
        value = made.inputs[0]
        made = flow.producer.get(value)
    return value, made


def _choices(flow: Dataflow, value: str, router: Linear) -> Mapping[int, OnnxNode]:
    """The NonZero operations that choose the rows of a value by what the router gives."""

    def chooses(node: OnnxNode) -> bool:
        return node.op == "NonZero" and bool(flow.sources.get(node.inputs[0], 0) & router.bit)

    def back(node: OnnxNode) -> Iterable[str] | None:
        if flow.has_weight(node):
            return None
        # what the router has no part in is the residual stream, which goes back to the first layer
        fed = [one for one in flow.read(node) if flow.sources.get(one, 0) & router.bit]
        return () if chooses(node) else fed

    passed = flow.passed([value], back, forwards=False)
    return {id(node): node for node in passed if chooses(node)}


def _column(flow: Dataflow, split: OnnxNode, value: str, router: Linear) -> int | None:
    """One of all columns of a matrix [tokens, experts], with numbers where an expert was chosen."""
    scatter = flow.producer.get(split.inputs[0])
    whole = len(split.outputs) == router.rows and split.attributes.get("axis", 0) in (1, -1)
    if scatter is None or scatter.op != "ScatterElements" or not whole or len(scatter.inputs) < 3:
        return None
    if scatter.attributes.get("axis", 0) not in (1, -1) or not _are_best(flow, scatter.inputs[1], router):
        return None
    return split.outputs.index(value)


def _one_hot(flow: Dataflow, gather: OnnxNode, router: Linear) -> int | None:
    """One index of the axis [experts] that a OneHot of the chosen has, moved to the front."""
    index = flow.integers(gather.inputs[1])
    axis, made = gather.attributes.get("axis", 0), flow.producer.get(gather.inputs[0])
    if made is not None and made.op == "Transpose":
        order = made.attributes.get("perm", ())
        axis = order[axis] - len(order) if 0 <= axis < len(order) else axis
        made = flow.producer.get(made.inputs[0])
    if made is None or made.op != "OneHot" or index is None or len(index) != 1:
        return None
    same = axis == made.attributes.get("axis", -1) == -1
    inside = 0 <= index[0] < router.rows
    return index[0] if same and inside and _are_best(flow, made.inputs[0], router) else None


def _are_best(flow: Dataflow, value: str, router: Linear) -> bool:
    """Whether a value is the numbers of the best experts."""
    value, top = _behind(flow, value, ("Cast", "Identity"))
    if top is None or top.op != "TopK" or list(top.outputs[1:]) != [value]:
        return False
    if top.attributes.get("axis", -1) not in (-1, 1):
        return False
    return _is_given(flow, top.inputs[0], router)


def _is_given(flow: Dataflow, scores: str, router: Linear) -> bool:
    """Whether a value is made of what the router gives, element by element and in its order."""
    while scores != router.output:
        made = flow.producer.get(scores)
        if made is None or made.op not in (*_SAME, *_ADDED, "Reshape"):
            return False
        if made.op == "Reshape" and (flow.shape_told(made.inputs[1]) or [None])[-1] != router.rows:
            return False
        given = made.inputs[:1] if made.op not in _ADDED else made.inputs[_ADDED[made.op] :]
        routed = [value for value in given if flow.sources.get(value, 0) & router.bit]
        if len(routed) != 1:
            return False
        (scores,) = routed
    return True


def correction(flow: Dataflow, router: Linear) -> InitializerView | None:
    """What is added to the scores of all tokens for choosing experts only: a number for each expert."""
    scores = {router.output}
    for node in flow.after(router.output):
        if node.op == "Sigmoid" and node.inputs[0] in scores:
            scores.add(node.outputs[0])
        elif node.op == "Add" and scores & set(node.inputs):
            other = next((value for value in node.inputs if value not in scores), "")
            weight = flow.weight(other) if other else None
            if weight is not None and weight.shape == (router.rows,):
                return weight
    return None
