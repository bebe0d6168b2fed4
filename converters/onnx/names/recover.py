"""Hugging Face names for the initializers of an ONNX graph, whoever exported it.

Three cases. A file that says that nemoconv wrote it has the names. Of a decoder whose parts are known here,
every weight is found by its place in the graph and named after it; an initializer with the name of another
weight is an error. For other architectures, the file must have kept every name and orientation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ....errors import MappingError, UnsupportedError, some
from ....formats.onnx.file import OnnxFile
from ....mappings.hf.fields import Value, read_config
from ....mappings.table import Table
from ....tensors.dtypes import BY_NAME, DType
from ....tensors.stored import StoredTensor
from .dataflow import Dataflow
from .places import find_places
from .roles import Roles, WeightPlace, roles_of
from .values import InitializerView, Rows
from .weights import Weights, joined

Shape = tuple[int, ...]
#: the key of model.onnx's metadata with which nemoconv marks its own files
MARK: Final = "nemoconv.format"
#: weights of one tensor by place
Parts = dict[WeightPlace, InitializerView]
#: operations on integer weights whose scales are not constants of one DequantizeLinear
_QUANTIZED: Final = frozenset(
    """
    MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul QGemm QAttention QMoE
    MatMulBnb4 MatMulFpQ4
    """.split()
)
#: the size that says how many rows of a tensor a role has
_ROWS: Final = {"query": "q_rows", "key": "k_rows", "value": "k_rows", "gate": "ffn", "up": "ffn"}


@dataclass(frozen=True, slots=True)
class RecoveredTensors:
    """Tensors by their Hugging Face names, how the names were found, initializers that are no weights of
    the model, and those that are only approximations: decoded from fewer bits, or norms with 1 added, with
    what they may be off by."""

    tensors: Mapping[str, StoredTensor]
    how: str
    left: Sequence[str] = ()
    decoded: Sequence[str] = ()
    folded: Mapping[str, float] = field(default_factory=dict)


def recover(
    onnx: OnnxFile,
    table: Table,
    config: Mapping[str, Value],
    *,
    approximate: bool = False,
    dtype: DType | None = None,
) -> RecoveredTensors:
    """The tensors of a graph that ``config`` (config.json) describes.

    Raises UnsupportedError (a MappingError where names cannot be told) that names the weight.
    """
    shapes = required_shapes(table, config)
    if MARK in onnx.metadata:
        found = {name: held.stored() for name, held in onnx.initializers.items() if held.external}
        left = [name for name in onnx.initializers if name not in found]
        return RecoveredTensors(found, "names that nemoconv wrote", left)
    flow = Dataflow(onnx)
    for node in onnx.nodes:
        if node.op in _QUANTIZED:
            raise UnsupportedError(
                f"{flow.where}: {node} computes with quantized weights, of a kind that is not decoded here",
                hint="convert the original",
            )
    original = BY_NAME.get(str(config.get("torch_dtype") or config.get("dtype")))
    weights = Weights(flow, approximate=approximate, dtype=dtype, original=original)
    if roles := roles_of(table):
        return _ByPlace(flow, weights, table, roles, config, shapes).named()
    return _by_name(flow, weights, table, shapes)


def required_shapes(table: Table, config: Mapping[str, Value]) -> dict[str, Shape]:
    """Shapes of the Hugging Face tensors that a config.json asks for, by name, in model order."""
    model, _ = read_config(table.fields, config, tuple(config))
    sizes = table.sizes(model)
    return {
        part.hf.format(**instance.index): part.shape(sizes)
        for instance in table.instances(model, sizes)
        if instance.in_hf
        for part in instance.rule.parts
    }


class _ByPlace:
    """The tensors of an architecture whose parts the graph tells."""

    def __init__(
        self,
        flow: Dataflow,
        weights: Weights,
        table: Table,
        roles: Roles,
        config: Mapping[str, Value],
        shapes: Mapping[str, Shape],
    ) -> None:
        self._flow, self._weights, self._table, self._shapes = flow, weights, table, shapes
        self._roles = roles
        self._config, _ = read_config(table.fields, config, tuple(config))
        self._sizes = table.sizes(self._config)

    def named(self) -> RecoveredTensors:
        roles = self._roles
        places = find_places(self._flow, post_norm=roles.post_norm, neighbours=roles.neighbours)
        found: dict[str, Parts] = {}
        for place, weight in places.items():
            name = roles.name(place)
            if name is None:
                raise MappingError(
                    f"{self._flow.where}: {weight.name!r} is the {place}, which a "
                    f"{self._table.architecture!r} does not have",
                    hint="config.json describes another model",
                )
            found.setdefault(name, {})[place] = weight
        self._check_names(found)
        self._untie(found)
        tensors = {name: self._tensor(name, parts) for name, parts in found.items()}
        used = {weight.name for parts in found.values() for weight in parts.values()} | self._weights.scales
        left = [name for name in self._flow.onnx.initializers if name not in used]
        lossy = [*self._weights.decoded], self._weights.folded
        return RecoveredTensors(tensors, "places in the graph", left, *lossy)

    def _tensor(self, name: str, parts: Parts) -> StoredTensor:
        place, weight = next(iter(parts.items()))
        if len(parts) == 1:
            tensor = self._one(name, place, weight)
        elif len({(part.name, part.transposed) for part in parts.values()}) == 1:
            self._check_order(name, parts)
            tensor = self._one(name, place, replace(weight, rows=None, item=None))
        elif self._roles.by_group:
            raise UnsupportedError(
                f"{self._flow.where}: {name} has queries, keys and values group by group, "
                f"and {some([part.name for part in parts.values()])} do not"
            )
        else:
            for one, part in parts.items():
                self._check_rows(name, one, part, self._one(name, one, part).shape[self._axis(one)])
            tensors = [self._one(name, one, part) for one, part in parts.items()]
            tensor = joined(name, tensors, self._axis(place))
        if name in self._shapes and tensor.shape != self._shapes[name]:
            raise MappingError(
                f"{self._flow.where}: {weight.name!r} is the {place}, {name}, but has shape "
                f"{list(tensor.shape)}, and the config asks for {list(self._shapes[name])}",
                hint="config.json describes another model",
            )
        return tensor

    def _axis(self, place: WeightPlace) -> int:
        """The axis of the Hugging Face tensor along which a role's rows lie."""
        return 1 if self._is_in_out(place) else 0

    def _is_in_out(self, place: WeightPlace) -> bool:
        matrix = place.kind == "weight" and not place.role.endswith("norm")
        experts = self._roles.stacked and place.expert is not None
        return matrix and (experts or (self._roles.in_out and place.layer is not None))

    def _one(self, name: str, place: WeightPlace, weight: InitializerView) -> StoredTensor:
        offset = self._roles.offset_norms and place.role.endswith("norm") and place.kind == "weight"
        return self._weights.tensor(name, weight, offset_norm=offset, in_out=self._is_in_out(place))

    def _check_rows(self, name: str, place: WeightPlace, weight: InitializerView, count: int) -> None:
        size = _ROWS[place.role] if place.expert is None else "moe_ffn"
        wanted = self._sizes[size]
        if count != wanted:
            raise MappingError(
                f"{self._flow.where}: {weight.name!r} is the {place}, a part of {name}, and has {count:,} "
                f"rows, where the config asks for {wanted:,}",
                hint="config.json describes another model",
            )

    def _check_order(self, name: str, parts: Parts) -> None:
        """A tensor that is used for several roles or experts must hold them in Hugging Face's order."""
        runs = self._sizes["group"] if self._roles.by_group else 1
        experts: dict[int | None, Parts] = {}
        for place, weight in parts.items():
            experts.setdefault(place.expert, {})[place] = weight
        for number, (expert, own) in enumerate(experts.items()):
            at = 0
            for place, weight in own.items():
                rows = weight.rows or Rows(at, 0, 0)
                told = weight.rows is not None or len(own) == 1
                if not told or rows.first != at or weight.item != expert or expert not in (None, number):
                    raise MappingError(
                        f"{self._flow.where}: {weight.name!r} has its rows in another order than {name}"
                    )
                if weight.rows is not None:
                    count = rows.length * (runs if expert is None else self._sizes["moe_ffn"])
                    self._check_rows(name, place, weight, count)
                at += rows.length

    def _check_names(self, found: Mapping[str, Parts]) -> None:
        """A file's own names that look like Hugging Face's must agree with the places."""
        uses: dict[str, dict[str, WeightPlace]] = {}
        for name, parts in found.items():
            for place, weight in parts.items():
                uses.setdefault(weight.name, {})[name] = place
        for held, names in uses.items():
            words = held.split(".")
            told = {".".join(words[i:]) for i in range(len(words))} & self._shapes.keys()
            if told and not told & set(names):
                name, place = next(iter(names.items()))
                raise MappingError(
                    f"{self._flow.where}: {held!r} has the name of another weight: in the graph it is the "
                    f"{place}, {name}",
                    hint="the file was edited, or two exports are mixed",
                )

    def _untie(self, found: dict[str, Parts]) -> None:
        """A head that is the embedding itself is no tensor of its own in a tied model."""
        for copy, original in self._table.tied:
            if copy in self._shapes or copy not in found or original not in found:
                continue
            (head,), (embedding,) = found[copy].values(), found[original].values()
            if (head.name, head.transposed) == (embedding.name, embedding.transposed):
                del found[copy]


def _by_name(flow: Dataflow, weights: Weights, table: Table, shapes: Mapping[str, Shape]) -> RecoveredTensors:
    """Every tensor under its own name, perhaps below the name of a module that wraps the model.

    Raises UnsupportedError (a MappingError where names are missing) that names the weight.
    """
    optional = {copy for copy, _ in table.tied}
    held = flow.onnx.initializers
    prefix = _prefix(held, [name for name in shapes if name not in optional])
    missing = [name for name in shapes if prefix + name not in held and name not in optional]
    if missing:
        raise MappingError(
            f"{flow.where}: {len(missing)} weights of a {table.architecture!r} are not there under their "
            f"names: {some(missing)}",
            hint="their places do not tell them here; docs/onnx.md lists the architectures where they do",
        )
    wrong = _stored_otherwise(flow)
    tensors = {}
    for name, shape in shapes.items():
        if prefix + name not in held:
            continue
        if prefix + name in wrong:
            raise UnsupportedError(f"{flow.where}: {prefix + name!r} is stored transposed or quantized")
        tensor = tensors[name] = weights.tensor(name, InitializerView(held[prefix + name]))
        if tensor.shape != shape:
            raise MappingError(
                f"{flow.where}: {prefix + name!r} has shape {list(tensor.shape)}, "
                f"the config asks for {list(shape)}"
            )
    left = [name for name in held if name.removeprefix(prefix) not in tensors]
    return RecoveredTensors(tensors, "their own names", left)


def _stored_otherwise(flow: Dataflow) -> set[str]:
    """Weights that the graph does not use the way round in which Hugging Face stores them."""
    found = set()
    for linear in flow.linears:
        weight = linear.weight
        stacked = len(weight.initializer.shape) == 3  # which Hugging Face stores [experts, in, out]
        if weight.decoder is not None or weight.transposed != stacked:
            found.add(weight.name)
    return found


def _prefix(held: Mapping[str, object], names: Sequence[str]) -> str:
    """What stands before every name in the file."""
    for name in held:
        for one in names[:1]:
            if name == one or name.endswith("." + one):
                return name.removesuffix(one)
    return ""
