"""What layers are made of: one small function each, shared by all architectures.

Activations inside a layer are [tokens, features], tokens of all rows of the batch one after another, so
that ``Gemm`` takes a Hugging Face weight [out, in] as it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ....errors import UnsupportedConfig
from ....mappings.blocks.place import Norm
from .builder import Graph


@dataclass(frozen=True, slots=True)
class Modules:
    """Layers of one model by the names of their weights; ``transposed``: these are stored [in, out], as
    GPT-2's are."""

    graph: Graph
    norms: Norm
    epsilon: float
    activation: str
    transposed: bool = False

    def linear(self, x: str, name: str) -> str:
        """``name``.weight, and ``name``.bias where the model has one."""
        bias = [self.graph.weight(name + ".bias")] if self.graph.has(name + ".bias") else []
        turned = None if self.transposed else 1
        return self.graph.op("Gemm", x, self.graph.weight(name + ".weight"), *bias, transB=turned)

    def norm(self, x: str, name: str, epsilon: float | None = None) -> str:
        """Over the last axis; ``epsilon`` where it is not that of the other norms."""
        graph, kind = self.graph, self.norms
        epsilon = self.epsilon if epsilon is None else epsilon
        weight = graph.weight(name + ".weight")
        if kind.offset:
            weight = graph.op("Add", weight, graph.scalar(kind.offset))
        if kind.kind == "rms":
            return graph.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon)
        bias = graph.weight(name + ".bias")
        return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def unweighted_norm(self, x: str, head_dim: int) -> str:
        """The root-mean-square norm of each head by itself, without a weight."""
        graph = self.graph
        heads = graph.op("Reshape", x, graph.constant([-1, head_dim]))
        ones = graph.constant([1.0] * head_dim, graph.compute)
        normed = graph.op("RMSNormalization", heads, ones, axis=-1, epsilon=self.epsilon)
        return graph.op("Reshape", normed, graph.op("Shape", x))

    def activate(self, x: str) -> str:
        if self.activation not in _ACTIVATIONS:
            raise UnsupportedConfig(f"the activation {self.activation!r} has no ONNX graph here")
        return _ACTIVATIONS[self.activation](self.graph, x)

    def heads_norm(self, x: str, name: str, head_dim: int) -> str:
        """The norm of each head by itself."""
        heads = self.graph.op("Reshape", x, self.graph.constant([-1, head_dim]))
        return self.graph.op("Reshape", self.norm(heads, name), self.graph.op("Shape", x))


def by_row(
    graph: Graph, x: str, like: str, key: str, sizes: tuple[int, ...] = (-1,), *, output: str = ""
) -> str:
    """[rows * tokens, features] -> [rows, tokens, ``sizes``], as many as ``like`` [rows, tokens] has; the
    shape is computed once and named ``key``."""

    def shape() -> str:
        return graph.op("Concat", graph.op("Shape", like), graph.constant(sizes), axis=0)

    return graph.op("Reshape", x, graph.once(key, shape), output=output)


def _silu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


def _gelu(graph: Graph, x: str) -> str:
    return graph.op("Gelu", x)


def _tanh_gelu(graph: Graph, x: str) -> str:
    return graph.op("Gelu", x, approximate="tanh")


def _relu(graph: Graph, x: str) -> str:
    return graph.op("Relu", x)


def _tanh(graph: Graph, x: str) -> str:
    return graph.op("Tanh", x)


def _sigmoid(graph: Graph, x: str) -> str:
    return graph.op("Sigmoid", x)


def _squared_relu(graph: Graph, x: str) -> str:
    positive = graph.op("Relu", x)
    return graph.op("Mul", positive, positive)


#: by transformers' names
_ACTIVATIONS: Final[Mapping[str, Callable[[Graph, str], str]]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "relu": _relu,
    "relu2": _squared_relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
}


def embedding(graph: Graph, name: str, ids: str) -> str:
    """Rows of a table [count, features], looked up in the stored type: [batch, sequence, features]."""
    rows = graph.op("Gather", graph.stored(name + ".weight"), ids)
    return graph.to_compute(rows, graph.type_of(name + ".weight"))


def soft_cap(graph: Graph, x: str, cap: float) -> str:
    """Numbers smoothly kept within ``cap`` of zero."""
    limit = graph.scalar(cap)
    return graph.op("Mul", graph.op("Tanh", graph.op("Div", x, limit)), limit)
