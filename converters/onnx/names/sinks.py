"""Attention sinks in an ONNX graph: a logit for each head that takes part in the softmax and has no value.

onnxruntime's operator is given them; elsewhere they are one more column of the scores, or of the mask that is
added to the scores.
"""

from __future__ import annotations

from typing import Final

from ....formats.onnx.file import Node
from .values import Values
from .weighted import Weight, is_weight

#: the position of the input that is sinks, or a mask or scores with them
_PLACES: Final = {"GroupQueryAttention": 11, "Attention": 3, "Softmax": 0}
_MOST: Final = 8  # operations in a row that only move or repeat elements
_MOVED: Final = frozenset({"Expand", "Reshape", "Unsqueeze", "Cast", "CastLike"})


def find_sinks(values: Values, node: Node) -> Weight | None:
    """The sinks of an attention, or of a softmax that is one, as a vector; None where it has none."""
    place = _PLACES.get(node.op)
    value = node.inputs[place] if place is not None and len(node.inputs) > place else ""
    if not value or node.op == "GroupQueryAttention":
        return _vector(values, value) if value else None
    made = values.producer.get(value)
    while made is not None and made.op in ("Cast", "Identity", "Sub"):  # less the greatest of a row
        made = values.producer.get(made.inputs[0])
    if made is None or made.op != "Concat" or len(made.inputs) != 2:
        return None
    return _vector(values, made.inputs[1])


def _vector(values: Values, value: str, depth: int = 0) -> Weight | None:
    """The one weight with a single axis that a value is made of, perhaps repeated, or added to nothing."""
    held = values.onnx.initializers.get(value)
    if held is not None:
        weight = Weight(held, flat=True)
        return weight if sum(size > 1 for size in held.shape) == 1 and is_weight(weight) else None
    made = values.producer.get(value)
    if made is None or depth > _MOST:
        return None
    if made.op == "Add":
        found = [_vector(values, one, depth + 1) for one in made.inputs[:2]]
        return next((weight for weight in found if weight is not None), None)
    return _vector(values, made.inputs[0], depth + 1) if made.op in _MOVED else None
