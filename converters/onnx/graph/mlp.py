"""The MLPs of a layer, plain, gated or mixtures of experts: a router's choice for each token, and the experts
in the ways they are stored.

An expert computes only the tokens it was chosen for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ....mappings.hf.fields import Value
from .builder import FLOAT32, Graph
from .modules import Modules


@dataclass(frozen=True, slots=True)
class Gated:
    """down(act(gate(x)) * up(x))."""

    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        gate = modules.activate(modules.linear(x, layer + self.gate))
        up = modules.linear(x, layer + self.up)
        return modules.linear(modules.graph.op("Mul", gate, up), layer + self.down)


@dataclass(frozen=True, slots=True)
class PackedGated:
    """Gated, with gate and up one below the other in one tensor."""

    gate_up: str
    down: str

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        both = modules.linear(x, layer + self.gate_up)
        gate, up = modules.graph.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        return modules.linear(modules.graph.op("Mul", modules.activate(gate), up), layer + self.down)


@dataclass(frozen=True, slots=True)
class Plain:
    """down(act(up(x)))."""

    up: str
    down: str

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        return modules.linear(modules.activate(modules.linear(x, layer + self.up)), layer + self.down)


@dataclass(frozen=True, slots=True)
class Router:
    """Scores of experts from ``name``.weight: a softmax over all, or a sigmoid of each.

    ``correction`` [experts] is added for choosing only. ``normalized``: the shares of those chosen add up to
    one; None: unless the config says ``moe_router_pre_softmax``. What the config says of groups of experts
    and of a factor for all shares holds for every kind; one expert is chosen if it does not say how many.
    """

    name: str
    scores: Literal["softmax", "sigmoid"] = "softmax"
    correction: str = ""
    normalized: bool | None = None

    def shares(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        """[tokens, experts]: what each expert's result is multiplied by, 0 where it is not chosen.

        A softmax over the chosen is one over all divided by the sum over the chosen.
        """
        graph = modules.graph
        logits = graph.widened(modules.linear(x, layer + self.name))
        scores = graph.op("Sigmoid", logits)
        if self.scores == "softmax":
            scores = graph.op("Softmax", logits, axis=-1)
        choice = scores
        if self.correction:
            choice = graph.op("Add", scores, graph.widened(graph.weight(layer + self.correction)))
        if config.get("moe_router_num_groups"):
            choice = _best_groups(graph, choice, config)
        kept = graph.constant([config.get("moe_router_topk", 1)])
        best, chosen = graph.ops("TopK", choice, kept, outputs=2, axis=-1)
        if choice != scores:
            best = graph.op("GatherElements", scores, chosen, axis=1)
        normalized = self.normalized
        if normalized is None:
            normalized = not config.get("moe_router_pre_softmax")
        if normalized:
            best = graph.op("Div", best, graph.op("ReduceSum", best, graph.constant([-1]), keepdims=1))
        factor = config.get("moe_router_topk_scaling_factor")
        if factor not in (None, 1.0):
            best = graph.op("Mul", best, graph.constant(factor, FLOAT32))
        none = graph.op("ConstantOfShape", graph.op("Shape", scores))
        return graph.op("ScatterElements", none, chosen, best, axis=1)


def _best_groups(graph: Graph, choice: str, config: Mapping[str, Value]) -> str:
    """``choice`` with minus infinity for experts outside the best groups. A group counts as much as its best
    experts, of which there are as many as are chosen in a group on average."""
    groups, kept = config["moe_router_num_groups"], config["moe_router_group_topk"]
    ranked_by = config["moe_router_topk"] // kept
    by_group = graph.op("Reshape", choice, graph.constant([-1, groups, config["num_moe_experts"] // groups]))
    best, _ = graph.ops("TopK", by_group, graph.constant([ranked_by]), outputs=2, axis=-1)
    value = graph.op("ReduceSum", best, graph.constant([-1]), keepdims=0)  # [tokens, groups]
    _, chosen = graph.ops("TopK", value, graph.constant([kept]), outputs=2, axis=-1)
    zero, none = graph.constant(0.0, FLOAT32), graph.op("ConstantOfShape", graph.op("Shape", value))
    ones = graph.op("Expand", graph.constant(1.0, FLOAT32), graph.op("Shape", chosen))
    picked = graph.op("ScatterElements", none, chosen, ones, axis=1)
    inside = graph.op("Unsqueeze", graph.op("Greater", picked, zero), graph.constant([2]))
    masked = graph.op("Where", inside, by_group, graph.constant(float("-inf"), FLOAT32))
    return graph.op("Reshape", masked, graph.op("Shape", choice))


@dataclass(frozen=True, slots=True)
class Experts:
    """Experts in tensors of their own. ``expert`` has a hole for the number of the expert. ``shared`` is one
    that every token passes, times sigmoid(``shared_gate``) where there is such a gate."""

    router: Router
    expert: str
    mlp: Gated
    shared: Gated | None = None
    shared_gate: str = ""

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        def expert(rows: str, number: int) -> str:
            return self.mlp.build(modules, rows, layer + self.expert.format(number), config)

        total = mixture(modules, x, self.router.shares(modules, x, layer, config), config, expert)
        return _with_shared(modules, x, layer, config, total, self.shared, self.shared_gate)


@dataclass(frozen=True, slots=True)
class StackedExperts:
    """gpt-oss: ``gate_up`` [experts, in, 2 * ffn], gate and up alternating, and ``down`` [experts, ffn, in],
    both with biases; down((clamp(up) + 1) * clamp(gate) * sigmoid(1.702 * clamp(gate)))."""

    router: Router
    gate_up: str
    down: str

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        graph, limit = modules.graph, config["activation_func_clamp_value"]

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

        return mixture(modules, x, self.router.shares(modules, x, layer, config), config, expert)


@dataclass(frozen=True, slots=True)
class ScaledExperts:
    """Llama 4: ``gate_up`` [experts, in, 2 * ffn], all of gate before all of up, and ``down`` [experts, ffn,
    in]; the tokens are scaled on their way in, not the results. The router chooses one expert."""

    router: Router
    gate_up: str
    down: str
    shared: Gated

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> str:
        graph = modules.graph

        def expert(rows: str, number: int) -> str:
            both = graph.op("MatMul", rows, graph.row(layer + self.gate_up, number))
            gate, up = graph.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
            active = graph.op("Mul", modules.activate(gate), up)
            return graph.op("MatMul", active, graph.row(layer + self.down, number))

        shares = self.router.shares(modules, x, layer, config)
        total = mixture(modules, x, shares, config, expert, scales_input=True)
        return _with_shared(modules, x, layer, config, total, self.shared, "")


def _with_shared(
    modules: Modules,
    x: str,
    layer: str,
    config: Mapping[str, Value],
    total: str,
    mlp: Gated | None,
    gate: str,
) -> str:
    """``total`` and what an expert gives that every token passes."""
    if mlp is None:
        return total
    graph = modules.graph
    with graph.scope("shared"):
        weight = graph.op("Sigmoid", modules.linear(x, layer + gate)) if gate else ""
        found = mlp.build(modules, x, layer, config)
        return graph.op("Add", total, graph.op("Mul", found, weight) if weight else found)


def mixture(
    modules: Modules,
    x: str,
    shares: str,
    config: Mapping[str, Value],
    expert: Callable[[str, int], str],
    *,
    scales_input: bool = False,
) -> str:
    """Results of ``expert`` for the rows of ``x`` that it was chosen for, times its share, added up;
    ``scales_input``: for these rows times its share."""
    graph, count = modules.graph, config["num_moe_experts"]
    columns = graph.ops("Split", shares, outputs=count, axis=1, num_outputs=count)
    # added up in float32: onnxruntime's CPUs scatter no half precision
    total = graph.op("ConstantOfShape", graph.op("Shape", x))
    for number, column in enumerate(columns):
        with graph.scope(f"expert.{number}"):
            flat = graph.op("Reshape", column, graph.constant([-1]))
            tokens = graph.op("Transpose", graph.op("NonZero", flat), perm=[1, 0])  # [chosen, 1]
            rows, share = graph.op("GatherND", x, tokens), graph.op("GatherND", column, tokens)
            if scales_input:
                rows = graph.op("Mul", rows, graph.to_compute(share, FLOAT32))
            found = graph.widened(expert(rows, number))
            scaled = found if scales_input else graph.op("Mul", found, share)
            total = graph.op("ScatterND", total, tokens, scaled, reduction="add")
    return graph.to_compute(total, FLOAT32)


MlpGraph = Gated | PackedGated | Plain | Experts | StackedExperts | ScaledExperts
