"""What of an ONNX graph holds weights: linear layers, looked-up tables, norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ....formats.onnx.file import Initializer, Node


class Rows(NamedTuple):
    """``length`` rows from ``first`` on, of every ``period`` rows."""

    first: int
    length: int
    period: int


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer as an operation sees it: perhaps transposed, with 1 added, or decoded by ``decoder``
    (a DequantizeLinear or MatMulNBits node). ``rows``: only these of what it is then. ``item``: only this
    one of the matrices that are stacked in it. ``flat``: its elements as a vector."""

    initializer: Initializer
    transposed: bool = False
    plus_one: bool = False
    decoder: Node | None = None
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


@dataclass(frozen=True, slots=True)
class Linear:
    """A multiplication with a weight [``rows``, in]. ``output`` is what it gives, bias added; ``rank`` how
    many axes that has, the rows along the last. ``chosen``: the weight is [experts, ``rows``, in], and this
    value says which of them multiplies each token. Both values are given names where an operation is several
    layers at once."""

    bit: int
    node: Node
    data: str
    output: str
    rows: int
    weight: Weight
    bias: Weight | None
    rank: int
    chosen: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows taken from a table."""

    bit: int
    node: Node
    weight: Weight


@dataclass(frozen=True, slots=True)
class Norm:
    """A multiplication of each element of the last axis with a weight. ``data``: what is added up first."""

    node: Node
    data: tuple[str, ...]
    output: str
    weight: Weight
    bias: Weight | None


def is_weight(weight: Weight) -> bool:
    kind = weight.initializer.type
    return weight.decoder is not None or kind.dtype is None or kind.dtype.is_floating_point


def is_vector(weight: Weight) -> bool:
    shape = weight.shape
    return len(shape) == 1 and shape[0] > 1 and is_weight(weight)
