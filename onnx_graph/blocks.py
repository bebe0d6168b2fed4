"""The parts of a decoder: one small function each, shared by all architectures.

Activations inside a layer are [tokens, features], tokens of all rows of the batch one after another, so
that ``Gemm`` takes a Hugging Face weight [out, in] as it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings.config_fields import Value
from nemoconv.onnx_graph.attention import Heads
from nemoconv.onnx_graph.builder import FLOAT32, Graph


@dataclass(frozen=True, slots=True)
class Norm:
    """A kind of normalization; ``offset`` is what the computation adds to the stored weight."""

    kind: Literal["rms", "layer"]
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Blocks as one model has them: ``transposed`` weights are stored [in, out], as GPT-2's are."""

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

    def norm(self, x: str, name: str) -> str:
        """Over the last axis."""
        graph, kind = self.graph, self.norms
        weight = graph.weight(name + ".weight")
        if kind.offset:
            weight = graph.op("Add", weight, graph.scalar(kind.offset))
        if kind.kind == "rms":
            return graph.op("RMSNormalization", x, weight, axis=-1, epsilon=self.epsilon)
        bias = graph.weight(name + ".bias")
        return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.epsilon)

    def activate(self, x: str) -> str:
        if self.activation not in _ACTIVATIONS:
            raise UnsupportedConfig(f"the activation {self.activation!r} has no ONNX graph here")
        return _ACTIVATIONS[self.activation](self.graph, x)

    def heads_norm(self, x: str, name: str, head_dim: int) -> str:
        """The norm of each head by itself."""
        heads = self.graph.op("Reshape", x, self.graph.constant([-1, head_dim]))
        return self.graph.op("Reshape", self.norm(heads, name), self.graph.op("Shape", x))


def _silu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


def _gelu(graph: Graph, x: str) -> str:
    return graph.op("Gelu", x)


def _tanh_gelu(graph: Graph, x: str) -> str:
    return graph.op("Gelu", x, approximate="tanh")


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
    "relu2": _squared_relu,
}


@dataclass(frozen=True, slots=True)
class Gated:
    """down(act(gate(x)) * up(x))."""

    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> str:
        gate = parts.activate(parts.linear(x, layer + self.gate))
        up = parts.linear(x, layer + self.up)
        return parts.linear(parts.graph.op("Mul", gate, up), layer + self.down)


@dataclass(frozen=True, slots=True)
class PackedGated:
    """Gated, with gate and up one below the other in one tensor."""

    gate_up: str
    down: str

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> str:
        both = parts.linear(x, layer + self.gate_up)
        gate, up = parts.graph.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        return parts.linear(parts.graph.op("Mul", parts.activate(gate), up), layer + self.down)


@dataclass(frozen=True, slots=True)
class Plain:
    """down(act(up(x)))."""

    up: str
    down: str

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> str:
        return parts.linear(parts.activate(parts.linear(x, layer + self.up)), layer + self.down)


@dataclass(frozen=True, slots=True)
class Experts:
    """A router's choice of experts for each token; an expert computes only the tokens it was chosen for.

    ``expert`` has a hole for the number of the expert. ``shared`` is one that every token passes, times
    sigmoid(``shared_gate``).
    """

    router: str
    expert: str
    mlp: Gated
    shared: Gated | None = None
    shared_gate: str = ""

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> str:
        def expert(rows: str, number: int) -> str:
            return self.mlp.build(parts, rows, layer + self.expert.format(number), config)

        total = mixture(parts, x, layer + self.router, config, expert)
        if self.shared is None:
            return total
        graph = parts.graph
        with graph.scope("shared"):
            gate = graph.op("Sigmoid", parts.linear(x, layer + self.shared_gate))
            shared = self.shared.build(parts, x, layer, config)
            return graph.op("Add", total, graph.op("Mul", shared, gate))


@dataclass(frozen=True, slots=True)
class StackedExperts:
    """gpt-oss: ``gate_up`` [experts, in, 2 * ffn], gate and up alternating, and ``down`` [experts, ffn, in],
    both with biases; down((clamp(up) + 1) * clamp(gate) * sigmoid(1.702 * clamp(gate)))."""

    router: str
    gate_up: str
    down: str

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> str:
        graph, limit = parts.graph, config["activation_func_clamp_value"]

        def linear(rows: str, name: str, number: int) -> str:
            return graph.op(
                "Gemm", rows, graph.row(layer + name, number), graph.row(layer + name + "_bias", number)
            )

        def expert(rows: str, number: int) -> str:
            both = linear(rows, self.gate_up, number)
            gate = graph.op("Min", graph.every_second(both, 0), graph.scalar(limit))
            up = graph.op("Clip", graph.every_second(both, 1), graph.scalar(-limit), graph.scalar(limit))
            slope = graph.op("Sigmoid", graph.op("Mul", gate, graph.scalar(1.702)))
            active = graph.op("Mul", graph.op("Add", up, graph.scalar(1.0)), graph.op("Mul", gate, slope))
            return linear(active, self.down, number)

        return mixture(parts, x, layer + self.router, config, expert)


def mixture(
    parts: Parts, x: str, router: str, config: Mapping[str, Value], expert: Callable[[str, int], str]
) -> str:
    """Results of ``expert`` for the rows of ``x`` that it was chosen for, times its share, added up."""
    graph, count = parts.graph, config["num_moe_experts"]
    shares = _shares(parts, x, router, config)
    columns = graph.ops("Split", shares, outputs=count, axis=1, num_outputs=count)
    # added up in float32: onnxruntime's CPUs scatter no half precision
    total = graph.op("Mul", graph.widened(x), graph.constant(0.0, FLOAT32))
    for number, column in enumerate(columns):
        with graph.scope(f"expert.{number}"):
            flat = graph.op("Reshape", column, graph.constant([-1]))
            tokens = graph.op("Transpose", graph.op("NonZero", flat), perm=[1, 0])  # [chosen, 1]
            found = graph.widened(expert(graph.op("GatherND", x, tokens), number))
            scaled = graph.op("Mul", found, graph.op("GatherND", column, tokens))
            total = graph.op("ScatterND", total, tokens, scaled, reduction="add")
    return graph.to_compute(total, FLOAT32)


def _shares(parts: Parts, x: str, router: str, config: Mapping[str, Value]) -> str:
    """[tokens, experts]: what each expert's result is multiplied by, 0 where it is not chosen.

    A softmax over the chosen is one over all divided by the sum over the chosen.
    """
    graph = parts.graph
    shares = graph.op("Softmax", graph.widened(parts.linear(x, router)), axis=-1)
    kept = graph.constant([config["moe_router_topk"]])
    best, chosen = graph.ops("TopK", shares, kept, outputs=2, axis=-1)
    if not config.get("moe_router_pre_softmax"):
        best = graph.op("Div", best, graph.op("ReduceSum", best, graph.constant([-1]), keepdims=1))
    none = graph.op("Mul", shares, graph.constant(0.0, FLOAT32))
    return graph.op("ScatterElements", none, chosen, best, axis=1)


Mlp = Gated | PackedGated | Plain | Experts | StackedExperts


@dataclass(frozen=True, slots=True)
class Separate:
    """Query, key and value of three tensors."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"

    def build(self, parts: Parts, x: str, layer: str, heads: Heads) -> list[str]:
        return [parts.linear(x, layer + name) for name in (self.query, self.key, self.value)]


@dataclass(frozen=True, slots=True)
class Packed:
    """Query, key and value of one tensor: one below the other, or with ``by_group`` so for every group of
    query heads that share a key."""

    name: str
    by_group: bool = False

    def build(self, parts: Parts, x: str, layer: str, heads: Heads) -> list[str]:
        graph, packed = parts.graph, parts.linear(x, layer + self.name)
        runs = heads.groups if self.by_group else 1
        sizes = [count // runs * heads.head_dim for count in (heads.queries, heads.groups, heads.groups)]
        by_run = graph.op("Reshape", packed, graph.constant([-1, runs, sum(sizes)]))
        found = graph.ops("Split", by_run, graph.constant(sizes), outputs=3, axis=-1)
        return [
            graph.op("Reshape", one, graph.constant([-1, runs * size]))
            for one, size in zip(found, sizes, strict=True)
        ]


Projections = Separate | Packed


def embedding(graph: Graph, name: str, ids: str) -> str:
    """Rows of a table [count, features], looked up in the stored type: [batch, sequence, features]."""
    rows = graph.op("Gather", graph.stored(name + ".weight"), ids)
    return graph.to_compute(rows, graph.type_of(name + ".weight"))


def soft_cap(graph: Graph, x: str, cap: float) -> str:
    """Numbers smoothly kept within ``cap`` of zero."""
    limit = graph.scalar(cap)
    return graph.op("Mul", graph.op("Tanh", graph.op("Div", x, limit)), limit)
