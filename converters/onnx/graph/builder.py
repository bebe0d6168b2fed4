"""A thin layer over ``onnx.helper``: values by name, constants inside the file, weights beside it.

Source: onnx.proto; docs/ExternalData.md of the ONNX repository.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy

from ....errors import CorruptCheckpoint, UnsupportedError, some
from ....extras import import_extra
from ....formats.onnx.types import TYPES
from ....tensors.dtypes import BY_NAME, DType

#: the first opset with Attention, RMSNormalization and RotaryEmbedding
OPSET: Final = 23
#: opset -> the oldest version of the file format that goes with it
_IR_VERSIONS: Final = {20: 9, OPSET: 10}
MICROSOFT: Final = "com.microsoft"
#: weights that a graph can compute with, and in what: onnxruntime has no bfloat16 matrix products on CPUs
COMPUTE: Final = {"float32": "float32", "bfloat16": "float32", "float16": "float16"}
INT64, INT32, FLOAT32 = (BY_NAME[name] for name in ("int64", "int32", "float32"))
BOOL: Final = BY_NAME["bool"]
_NUMBERS: Final = {kind.dtype: number for number, kind in TYPES.items() if kind.dtype is not None}

Size = int | str
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of ``length`` bytes at ``offset`` of ``location``, a file beside model.onnx."""

    location: str
    offset: int
    length: int
    dtype: DType
    shape: tuple[int, ...]


class Graph:
    """A graph under construction. Values are names; what computes them is appended in order.

    ``compute`` is the element type of activations. Weights keep their names, types and shapes; one of
    another type than ``compute`` is cast once, in the graph. ``unused`` are names of weights that nothing is
    computed with; they may be of any type.
    """

    def __init__(
        self, weights: Mapping[str, Weight], *, unused: Collection[str] = (), opset: int = OPSET
    ) -> None:
        self._onnx = import_extra("onnx", "writing ONNX")
        self._weights, self._opset = weights, opset
        self.compute = BY_NAME[_compute_type({name: weights[name] for name in weights if name not in unused})]
        # filled in place: a large mixture of experts has 200,000 nodes, and helpers that join parts copy
        self._model = self._onnx.ModelProto()
        self._graph = self._model.graph
        self._used: set[str] = set()
        self._domains: set[str] = set()
        self._cast: dict[str, str] = {}
        self._made: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._shared: dict[str, Any] = {}
        self._scope: list[str] = []
        self._taken: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of what is added inside begin with ``name``."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def op(self, kind: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Append an operation with one result and return the result's name; "" leaves an input out."""
        name = self._name(kind)
        self._add(kind, name, inputs, [output or name], domain, attributes)
        return output or name

    def ops(
        self, kind: str, *inputs: str, outputs: Sequence[str] | int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append an operation with several results: "" or a number of them stands for names of our own."""
        name = self._name(kind)
        wanted = [""] * outputs if isinstance(outputs, int) else outputs
        results = [given or f"{name}:{i}" for i, given in enumerate(wanted)]
        self._add(kind, name, inputs, results, domain, attributes)
        return results

    def weight(self, name: str) -> str:
        """The weight in the compute type."""
        if name not in self._cast:
            stored = self.stored(name)
            same = self._weights[name].dtype == self.compute
            self._cast[name] = stored if same else self._append_cast(stored)
        return self._cast[name]

    def stored(self, name: str) -> str:
        """The weight as it lies in its file."""
        if name not in self._used:
            self._add_external(name)
            self._used.add(name)
        return name

    def carry(self, name: str) -> None:
        """A weight that the model has and computes nothing with. An operation without readers takes it:
        onnxruntime warns of initializers that no operation takes."""
        self.op("Identity", self.stored(name))

    def row(self, name: str, number: int) -> str:
        """One of the tensors stacked in a weight, in the compute type."""
        picked = self.op("Gather", self.stored(name), self.constant(number))
        return self.to_compute(picked, self.type_of(name))

    def every_second(self, x: str, first: int) -> str:
        """Columns ``first``, ``first`` + 2, ... of a matrix."""
        end = numpy.iinfo(numpy.int64).max
        return self.op("Slice", x, *(self.constant([n]) for n in (first, end, 1, 2)))

    def has(self, name: str) -> bool:
        return name in self._weights

    def type_of(self, name: str) -> DType:
        """The element type that a weight is stored in."""
        return self._weights[name].dtype

    def constant(self, value: Any, dtype: DType = INT64) -> str:
        """A small constant, written into the file once."""
        array = numpy.asarray(value, dtype.numpy())
        key = (dtype.name, array.shape, array.tobytes())
        if key not in self._made:
            name = f"/constants/{len(self._made)}"
            self._graph.initializer.append(
                self._onnx.helper.make_tensor(name, _NUMBERS[dtype], array.shape, key[2], raw=True)
            )
            self._made[key] = name
        return self._made[key]

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What all layers share: values that ``make`` adds to the graph when they are first asked for."""
        if key not in self._shared:
            outside, self._scope = self._scope, [key]
            self._shared[key] = make()
            self._scope = outside
        found: T = self._shared[key]
        return found

    def scalar(self, value: float) -> str:
        """A number in the compute type."""
        return self.constant(value, self.compute)

    def cast(self, x: str, dtype: DType) -> str:
        return self.op("Cast", x, to=_NUMBERS[dtype])

    def to_compute(self, x: str, dtype: DType) -> str:
        """``x``, which is of type ``dtype``, in the compute type."""
        return x if dtype == self.compute else self.cast(x, self.compute)

    def widened(self, x: str) -> str:
        """``x``, which is of the compute type, in float32."""
        return x if self.compute == FLOAT32 else self.cast(x, FLOAT32)

    def input(self, name: str, dtype: DType, shape: Sequence[Size]) -> str:
        self._graph.input.append(self._onnx.helper.make_tensor_value_info(name, _NUMBERS[dtype], shape))
        return name

    def output(self, name: str, dtype: DType, shape: Sequence[Size]) -> None:
        self._graph.output.append(self._onnx.helper.make_tensor_value_info(name, _NUMBERS[dtype], shape))

    def result(self, name: str, x: str, shape: Sequence[Size]) -> None:
        """An output of the model in float32, whatever type it was computed in."""
        self.op("Cast", x, to=_NUMBERS[FLOAT32], output=name)
        self.output(name, FLOAT32, shape)

    def model(self, producer: tuple[str, str], properties: Mapping[str, str]) -> bytes:
        """The model.onnx. Raises CorruptCheckpoint when weights were given that nothing uses."""
        unused = sorted(self._weights.keys() - self._used)
        if unused:
            raise CorruptCheckpoint(f"{len(unused)} tensors have no place in the graph: {some(unused)}")
        helper, model = self._onnx.helper, self._model
        self._graph.name = "main_graph"
        model.ir_version = _IR_VERSIONS[self._opset]
        model.producer_name, model.producer_version = producer
        for domain in sorted({"", *self._domains}):
            model.opset_import.append(helper.make_opsetid(domain, 1 if domain else self._opset))
        helper.set_model_props(model, dict(properties))
        written: bytes = model.SerializeToString(deterministic=True)
        return written

    def _append_cast(self, name: str) -> str:
        result = f"/{name}"
        self._add("Cast", result, (name,), [result], "", {"to": _NUMBERS[self.compute]})
        return result

    def _add(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str,
        attributes: Mapping[str, Any],
    ) -> None:
        given = {key: value for key, value in attributes.items() if value is not None}
        self._graph.node.append(
            self._onnx.helper.make_node(kind, list(inputs), list(outputs), name=name, domain=domain, **given)
        )
        if domain:
            self._domains.add(domain)

    def _name(self, kind: str) -> str:
        name = "/" + "/".join([*self._scope, kind])
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def _add_external(self, name: str) -> None:
        weight = self._weights.get(name)
        if weight is None:
            raise CorruptCheckpoint(f"the graph needs {name}, which the model does not have")
        tensor = self._graph.initializer.add()
        tensor.name, tensor.data_type = name, _NUMBERS[weight.dtype]
        tensor.dims.extend(weight.shape)
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        place = {"location": weight.location, "offset": weight.offset, "length": weight.length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))


def _compute_type(weights: Mapping[str, Weight]) -> str:
    """The type that activations have: that of half-precision weights only if all of them are so."""
    found = {weight.dtype.name for weight in weights.values()}
    unusable = sorted(found - COMPUTE.keys())
    if unusable:
        raise UnsupportedError(
            f"tensors of type {some(unusable)} cannot be computed with in ONNX",
            hint="pass --dtype float32",
        )
    return "float16" if found == {"float16"} else "float32"
