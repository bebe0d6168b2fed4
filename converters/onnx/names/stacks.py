"""Experts whose matrices are stacked in one tensor: picked for each token, or given to onnxruntime's MoE.

Source: ONNX Runtime, docs/ContribOperators.md, MoE: weights are [experts, out, in], biases [experts, out].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ....formats.onnx.file import Node
from .values import MICROSOFT
from .weighted import Weight, is_weight

if TYPE_CHECKING:
    from .values import Values

_RESHAPED = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Cast"})


class Stack(NamedTuple):
    """The fields of a :class:`~nemoconv.converters.onnx.names.weighted.Linear` after its bit and node."""

    data: str
    output: str
    rows: int
    weight: Weight
    bias: Weight | None
    rank: int
    chosen: str


def stacks(values: Values, node: Node) -> list[Stack]:
    """The stacks that an operation multiplies with: none, one, or the two of a whole mixture of experts."""
    if node.op == "MatMul" and not node.domain:
        found = [_picked(values, node, place) for place in (0, 1)]
        return [stack for stack in found if stack is not None]
    if node.op == "MoE" and node.domain == MICROSOFT:
        return _mixture(values, node)
    return []


def _picked(values: Values, node: Node, place: int) -> Stack | None:
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
    weight = Weight(weight.initializer, transposed=place == 1)
    return Stack(node.inputs[1 - place], output, rows, weight, bias, 2, chosen)


def _pick(values: Values, value: str, axes: int) -> tuple[Weight, str] | None:
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


def _bias(values: Values, output: str, chosen: str) -> tuple[Weight | None, str]:
    """(bias or None, value with it added), where it was picked in the same way."""
    after = values.consumers.get(output, [])
    if len(after) != 1 or after[0].op != "Add":
        return None, output
    other = after[0].inputs[1] if after[0].inputs[0] == output else after[0].inputs[0]
    picked = _pick(values, other, 2)
    if picked is None or picked[1] != chosen:
        return None, output
    return picked[0], after[0].outputs[0]


def _mixture(values: Values, node: Node) -> list[Stack]:
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
        found.append(Stack(data, output, rows, weight, bias, 2, node.inputs[1]))
    return found
