"""Which rows of a linear layer's weight reach a value, where one layer makes several things at once.

A projection that is query, key and value together gives one value, which the graph cuts along its last axis:
by a Split, by Slices, all at once or group by group after a Reshape. Rows are followed from that value to its
consumers and theirs; whatever else happens to a value, it is made of no other rows than those that went in.
What this finds for two values is therefore a proof when the rows are disjoint, and only then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from ....formats.onnx.file import OnnxNode
from .consumers import Linear
from .dataflow import ATTENTIONS, Dataflow
from .values import Rows

#: arithmetic with which exporters work out where to cut
_ARITHMETIC: Final[Mapping[str, Callable[[int, int], int]]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": lambda a, b: a // b if b else 0,
}
_MOST: Final = 12  # operations in a row of such arithmetic
#: operations that leave the last axis as it is
_SAME: Final = frozenset({"Identity", "Cast", "CastLike"})


class _Held(NamedTuple):
    """Rows that a value is made of. ``rank``: of a value whose last axis is exactly these, in order."""

    rows: Rows
    rank: int | None = None


class RowFlow:
    """The rows of ``linear`` that each value is made of, up to the next linear layers."""

    def __init__(self, flow: Dataflow, linear: Linear) -> None:
        self._flow = flow
        self._whole = Rows(0, linear.rows, linear.rows)
        self._held: dict[str, _Held] = {linear.output: _Held(self._whole, linear.rank)}
        #: the rows that a Split or a Slice cuts out
        self.slices: set[Rows] = set()
        for node in flow.after(linear.output):
            self._pass(node)

    def rows(self, value: str) -> Rows | None:
        """None for a value that the layer does not reach."""
        held = self._held.get(value)
        return held.rows if held is not None else None

    def in_order(self, value: str) -> bool:
        """Whether a value is all that the layer gives, as it gives it."""
        held = self._held.get(value)
        return held is not None and held.rows == self._whole and held.rank is not None

    def _pass(self, node: OnnxNode) -> None:
        given = [self._held[value] for value in self._flow.read(node) if value in self._held]
        if not given:
            return
        first = self._held.get(node.inputs[0])
        if first is not None and first.rank is not None and len(given) == 1:
            found = self._moved(node, first, first.rank)
        else:
            found = None
        if found is None:
            rows = given[0].rows
            if any(other.rows != rows for other in given):
                rows = _hull([other.rows for other in given]) or self._whole
            found = [_Held(rows)] * len(node.outputs)
            if (node.domain, node.op) in ATTENTIONS:  # keys and values are kept as they come
                for place in (1, 2):
                    held = self._held.get(node.inputs[place])
                    if place < len(found) and held is not None:
                        found[place] = _Held(held.rows)
        self._held.update(zip(node.outputs, found, strict=False))

    def _moved(self, node: OnnxNode, held: _Held, rank: int) -> list[_Held] | None:
        """What an operation gives that only moves elements; None for others."""
        if node.op in _SAME:
            return [held]
        if node.op == "Transpose":
            order = node.attributes.get("perm", tuple(range(rank))[::-1])
            return [held if order[-1] == rank - 1 else _Held(held.rows)]
        if node.op == "Reshape":
            return [self._reshaped(node, held)]
        if node.op == "Split":
            return self._split(node, held, rank)
        if node.op == "Slice":
            return self._sliced(node, held, rank)
        return None

    def _reshaped(self, node: OnnxNode, held: _Held) -> _Held:
        """The last axis of the result is known if its length is: rows stay in order."""
        shape = self._flow.shape_told(node.inputs[1])
        length, rows = shape[-1] if shape else None, held.rows
        rank = len(shape) if shape else None
        if length == rows.length:
            return _Held(rows, rank)
        if length and length > 0 and rows == self._whole and rows.length % length == 0:
            return _Held(Rows(0, length, length), rank)
        return _Held(rows)

    def _split(self, node: OnnxNode, held: _Held, rank: int) -> list[_Held] | None:
        axis = node.attributes.get("axis", 0)
        if axis not in (-1, rank - 1):
            return [_Held(held.rows)] * len(node.outputs)
        count = len(node.outputs)
        given = node.inputs[1] if len(node.inputs) > 1 else ""
        sizes = self._told(given) if given else [-(-held.rows.length // count)] * count
        if sizes is None or len(sizes) != count or sum(sizes) != held.rows.length:
            return None
        firsts = [sum(sizes[:i]) for i in range(count)]
        cut = [self._cut(held, first, size, rank) for first, size in zip(firsts, sizes, strict=True)]
        self.slices.update(one.rows for one in cut)
        return cut

    def _sliced(self, node: OnnxNode, held: _Held, rank: int) -> list[_Held] | None:
        told = [self._told(value) if value else None for value in node.inputs[1:5]]
        starts, ends, axes, steps = [*told, None, None, None, None][:4]
        if starts is None or ends is None or axes is None or not len(starts) == len(ends) == len(axes) == 1:
            return None
        if axes[0] not in (-1, rank - 1):
            return [held if axes[0] >= 0 and (steps or [1]) == [1] else _Held(held.rows)]
        if steps == [2] and held.rows == self._whole and starts[0] in (0, 1) and ends[0] >= held.rows.length:
            every_second = Rows(starts[0], 1, 2)
            self.slices.add(every_second)
            return [_Held(every_second)]
        if (steps or [1]) != [1]:
            return None
        first, end = (n + held.rows.length if n < 0 else n for n in (starts[0], ends[0]))
        end = min(end, held.rows.length)
        if not 0 <= first < end:
            return None
        cut = self._cut(held, first, end - first, rank)
        self.slices.add(cut.rows)
        return [cut]

    def _told(self, value: str, depth: int = 0) -> list[int] | None:
        """Whole numbers: constants, or worked out from the length of a last axis that is known."""
        known, node = self._flow.integers(value), self._flow.producer.get(value)
        if known is not None or node is None or depth > _MOST:
            return known
        if node.op in ("Unsqueeze", "Squeeze", "Cast", "Identity"):
            return self._told(node.inputs[0], depth + 1)
        if node.op == "Gather":
            return self._length(node)
        if node.op in _ARITHMETIC:
            left, right = (self._told(one, depth + 1) for one in node.inputs[:2])
            if left is not None and right is not None and len(left) == len(right) == 1:
                return [_ARITHMETIC[node.op](left[0], right[0])]
        return None

    def _length(self, gather: OnnxNode) -> list[int] | None:
        """The length of a last axis, taken out of a shape."""
        shape, index = self._flow.producer.get(gather.inputs[0]), self._flow.integers(gather.inputs[1])
        held = self._held.get(shape.inputs[0]) if shape is not None and shape.op == "Shape" else None
        if shape is None or shape.attributes.keys() - {"start"} or held is None or held.rank is None:
            return None
        whole = not shape.attributes.get("start")
        return [held.rows.length] if whole and index in ([-1], [held.rank - 1]) else None

    @staticmethod
    def _cut(held: _Held, first: int, count: int, rank: int) -> _Held:
        rows = held.rows
        return _Held(Rows(rows.first + first, count, rows.period), rank)


def tile(rows: Iterator[Rows] | list[Rows]) -> bool:
    """Whether several rows are all rows of a layer, each once."""
    found = sorted(rows)
    period, at = found[0].period, 0
    for one in found:
        if one.period != period or one.first != at:
            return False
        at += one.length
    return at == period


def _hull(rows: list[Rows]) -> Rows | None:
    """All rows from the first to the last of some, if they are counted alike."""
    period = rows[0].period
    if any(one.period != period for one in rows):
        return None
    first = min(one.first for one in rows)
    return Rows(first, max(one.first + one.length for one in rows) - first, period)
