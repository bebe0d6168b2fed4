"""Hugging Face names of a graph that has kept them all, for architectures whose parts are not told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....errors import MappingError, UnsupportedError, some
from ....mappings.table import Table
from .dataflow import Dataflow
from .named import Named, Shape
from .weighted import Weight
from .weights import Weights


def by_name(flow: Dataflow, weights: Weights, table: Table, shapes: Mapping[str, Shape]) -> Named:
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
    wrong = _turned(flow)
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


def _turned(flow: Dataflow) -> set[str]:
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
