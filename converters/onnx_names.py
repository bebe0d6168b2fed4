"""Hugging Face names for the weights of an ONNX graph, whoever exported it.

Three cases. A file that says that nemoconv wrote it has the names. Of a decoder whose parts are known
here, every weight is found by its place in the graph and named after it; a name in the file that says
otherwise is an error. For other architectures, the file must have kept every name and orientation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nemoconv.converters.onnx_dataflow import Dataflow
from nemoconv.converters.onnx_operations import Weight
from nemoconv.converters.onnx_places import PACKED, Place, find_places
from nemoconv.converters.onnx_weights import Weights
from nemoconv.errors import MappingError, UnsupportedError, some
from nemoconv.formats.dtypes import DType
from nemoconv.formats.onnx_file import OnnxFile
from nemoconv.formats.tensors import StoredTensor
from nemoconv.mappings.config_fields import Value, read_config
from nemoconv.mappings.table import Table

#: the key of model.onnx's metadata with which nemoconv marks its own files
MARK: Final = "nemoconv.format"
_LAYER: Final = "model.layers.{layer}."
_QKV: Final = ("query", "key", "value")
_LLAMA: Final[Mapping[str, str]] = {
    "embedding": "model.embed_tokens",
    "input norm": _LAYER + "input_layernorm",
    "query": _LAYER + "self_attn.q_proj",
    "key": _LAYER + "self_attn.k_proj",
    "value": _LAYER + "self_attn.v_proj",
    "query norm": _LAYER + "self_attn.q_norm",
    "key norm": _LAYER + "self_attn.k_norm",
    "attention output": _LAYER + "self_attn.o_proj",
    "mlp norm": _LAYER + "post_attention_layernorm",
    "gate": _LAYER + "mlp.gate_proj",
    "up": _LAYER + "mlp.up_proj",
    "down": _LAYER + "mlp.down_proj",
    "final norm": "model.norm",
    "head": "lm_head",
}
_GEMMA2: Final = {
    **_LLAMA,
    "attention output norm": _LAYER + "post_attention_layernorm",
    "mlp norm": _LAYER + "pre_feedforward_layernorm",
    "mlp output norm": _LAYER + "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """An architecture whose parts the graph tells. ``offset_norms``: norms multiply by 1 + weight."""

    names: Mapping[str, str]
    offset_norms: bool = False


#: by ``model_type``
DECODERS: Final[Mapping[str, Decoder]] = {
    "llama": Decoder(_LLAMA),
    "mistral": Decoder(_LLAMA),
    "qwen2": Decoder(_LLAMA),
    "qwen3": Decoder(_LLAMA),
    "gemma": Decoder(_LLAMA, offset_norms=True),
    "gemma2": Decoder(_GEMMA2, offset_norms=True),
    "gemma3_text": Decoder(_GEMMA2, offset_norms=True),
    "nemotron": Decoder(_LLAMA, offset_norms=True),
    "starcoder2": Decoder({**_LLAMA, "up": _LAYER + "mlp.c_fc", "down": _LAYER + "mlp.c_proj"}),
}


#: operations on integer weights whose scales are not constants of one DequantizeLinear
_QUANTIZED: Final = frozenset(
    """
    MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul QGemm QAttention QMoE
    MatMulBnb4 MatMulFpQ4
    """.split()
)
#: architectures whose linear layers Hugging Face stores as [in, out] (transformers' Conv1D)
_IN_OUT: Final = frozenset({"gpt2"})


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors by their Hugging Face names, how the names were found, initializers that are no weights of
    the model, and those that are only approximations: decoded from fewer bits, or norms with 1 added."""

    tensors: Mapping[str, StoredTensor]
    how: str
    left: Sequence[str] = ()
    decoded: Sequence[str] = ()
    folded: Sequence[str] = ()


def recover(
    onnx: OnnxFile,
    table: Table,
    config: Mapping[str, Value],
    *,
    approximate: bool = False,
    dtype: DType | None = None,
) -> Named:
    """The tensors of a graph that ``config`` (config.json) describes.

    Raises UnsupportedError (a MappingError where names cannot be told) that names the weight.
    """
    shapes = required_shapes(table, config)
    if MARK in onnx.metadata:
        found = {name: held.stored() for name, held in onnx.initializers.items() if held.external}
        left = [name for name in onnx.initializers if name not in found]
        return Named(found, "names that nemoconv wrote", left)
    flow = Dataflow(onnx)
    for node in onnx.nodes:
        if node.op in _QUANTIZED:
            raise UnsupportedError(
                f"{flow.where}: {node} computes with quantized weights, of a kind that is not decoded here",
                hint="convert the original",
            )
    weights = Weights(flow, approximate=approximate, dtype=dtype)
    if table.architecture in DECODERS:
        return _by_place(flow, weights, table, config, shapes)
    return _by_name(flow, weights, table, shapes)


def required_shapes(table: Table, config: Mapping[str, Value]) -> dict[str, tuple[int, ...]]:
    """Shapes of the Hugging Face tensors that a config.json asks for, by name, in model order."""
    model, _ = read_config(table.fields, config, tuple(config))
    sizes = table.sizes(model)
    return {
        part.hf.format(**instance.index): part.shape(sizes)
        for instance in table.instances(model, sizes)
        if instance.in_hf
        for part in instance.rule.parts
    }


def _by_place(
    flow: Dataflow,
    weights: Weights,
    table: Table,
    config: Mapping[str, Value],
    shapes: Mapping[str, tuple[int, ...]],
) -> Named:
    decoder = DECODERS[table.architecture]
    places = find_places(flow)
    named: dict[str, tuple[Place, Weight]] = {}
    for place, weight in places.items():
        if place.role == PACKED:
            for name, rows in _packed(flow, place, weight, decoder, shapes):
                named[name] = place, replace(weight, rows=rows)
        elif place.role not in decoder.names:
            raise MappingError(
                f"{flow.where}: {weight.name!r} is the {place}, which a {table.architecture!r} does not have",
                hint="config.json describes another model",
            )
        else:
            named[_hf_name(decoder, place)] = place, weight
    _check_names(flow, named, shapes)
    _untie(named, table, config)
    tensors = {}
    for name, (place, weight) in named.items():
        offset = decoder.offset_norms and place.role.endswith("norm") and place.kind == "weight"
        tensor = tensors[name] = weights.tensor(name, weight, offset_norm=offset)
        if name in shapes and tensor.shape != shapes[name]:
            raise MappingError(
                f"{flow.where}: {weight.name!r} is the {place}, {name}, but has shape "
                f"{list(tensor.shape)}, and the config asks for {list(shapes[name])}",
                hint="config.json describes another model",
            )
    used = {weight.name for _, weight in named.values()} | weights.scales
    left = [name for name in flow.onnx.initializers if name not in used]
    return Named(tensors, "places in the graph", left, [*weights.decoded], [*weights.folded])


def _hf_name(decoder: Decoder, place: Place, role: str | None = None) -> str:
    return decoder.names[role or place.role].format(layer=place.layer) + "." + place.kind


def _packed(
    flow: Dataflow,
    place: Place,
    weight: Weight,
    decoder: Decoder,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, tuple[int, int]]]:
    """Query, key and value of a packed projection: (name, (first row, rows))."""
    rows = []
    first = 0
    for role in _QKV:
        name = _hf_name(decoder, place, role)
        if name not in shapes:
            raise MappingError(f"{flow.where}: {weight.name!r} is the {place}, but there is no {name} here")
        rows.append((name, (first, shapes[name][0])))
        first += shapes[name][0]
    shape = weight.initializer.shape
    held = shape[-1] if weight.transposed else shape[0]
    if weight.decoder is None and held != first:
        raise MappingError(
            f"{flow.where}: {weight.name!r} is the {place} with {held:,} rows, "
            f"and the config asks for {first:,}"
        )
    return rows


def _check_names(
    flow: Dataflow,
    named: Mapping[str, tuple[Place, Weight]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """A file's own names that look like Hugging Face's must agree with the places."""
    uses: dict[str, list[str]] = {}
    for name, (_, weight) in named.items():
        uses.setdefault(weight.name, []).append(name)
    for held, names in uses.items():
        told = {name for name in shapes if held == name or held.endswith("." + name)}
        if told and not told & set(names):
            place = named[names[0]][0]
            raise MappingError(
                f"{flow.where}: {held!r} has the name of another weight: in the graph it is the {place}, "
                f"{names[0]}",
                hint="the file was edited, or two exports are mixed",
            )


def _untie(
    named: dict[str, tuple[Place, Weight]],
    table: Table,
    config: Mapping[str, Value],
) -> None:
    """A head that is the embedding itself is no tensor of its own in a tied model."""
    model, _ = read_config(table.fields, config, tuple(config))
    for copy, original in table.tied:
        if not model.get("share_embeddings_and_output_weights") or copy not in named or original not in named:
            continue
        head, embedding = named[copy][1], named[original][1]
        if (head.name, head.transposed) == (embedding.name, embedding.transposed):
            del named[copy]


def _by_name(flow: Dataflow, weights: Weights, table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Named:
    """Every tensor under its own name, perhaps below the name of a module that wraps the model."""
    optional = {copy for copy, _ in table.tied}
    held = flow.onnx.initializers
    prefix = _prefix(held, [name for name in shapes if name not in optional])
    missing = [name for name in shapes if prefix + name not in held and name not in optional]
    if missing:
        raise MappingError(
            f"{flow.where}: {len(missing)} weights of a {table.architecture!r} are not there under their "
            f"names: {some(missing)}",
            hint=f"names can be recovered from the graph for {some(sorted(DECODERS))} only",
        )
    wrong = _turned(flow, table)
    tensors = {}
    for name, shape in shapes.items():
        if prefix + name not in held:
            continue
        if prefix + name in wrong:
            raise UnsupportedError(f"{flow.where}: {prefix + name!r} is stored transposed or quantized")
        tensor = tensors[name] = weights.tensor(name, Weight(held[prefix + name]))
        if tensor.shape != shape:
            raise MappingError(
                f"{flow.where}: {prefix + name!r} has shape {list(tensor.shape)}, "
                f"the config asks for {list(shape)}"
            )
    left = [name for name in held if name.removeprefix(prefix) not in tensors]
    return Named(tensors, "their own names", left)


def _turned(flow: Dataflow, table: Table) -> set[str]:
    """Weights that the graph does not use the way round in which Hugging Face stores them."""
    tables = {lookup.weight.name for lookup in flow.lookups}
    found = set()
    for linear in flow.linears:
        weight = linear.weight
        in_out = table.architecture in _IN_OUT and weight.name not in tables
        if weight.decoder is not None or weight.transposed != in_out:
            found.add(weight.name)
    return found


def _prefix(held: Mapping[str, object], names: Sequence[str]) -> str:
    """What stands before every name in the file."""
    for name in held:
        for one in names[:1]:
            if name == one or name.endswith("." + one):
                return name.removesuffix(one)
    return ""
