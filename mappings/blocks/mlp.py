"""Blocks of MLPs: dense, and mixtures of experts.

Source: megatron/core/transformer/mlp.py, megatron/core/transformer/moe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from ..hf.fields import Value
from ..rules import gated, same
from ..table import Part, Rule
from .names import Names
from .place import Place, There

LayerSets = Callable[[Mapping[str, Value]], Mapping[str, frozenset[int]]]
#: sets of layers, where not all have experts
DENSE: Final = "dense"
SPARSE: Final = "sparse"


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense MLP: with a gate of its own, one in the same tensor as ``up`` (both have one name), or none.

    ``after``: what Megatron calls the norm of what it gives, if names have one. ``on``: the set of layers
    that have it.
    """

    bias: There | None = None
    after: str = "mlp.linear_fc2.post_layernorm."
    on: str = ""

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """Norm, gate and up, down, norm of the output."""
        for rule in self._rules(names, at):
            yield replace(rule, layers=self.on)

    def _rules(self, names: Names, at: Place) -> Iterator[Rule]:
        fc1, up = at.layer + "mlp.linear_fc1", names.the("up")
        if names.mlp_norm:
            other = at.layer + "pre_mlp_layernorm."
            yield from at.norms(fc1 + ".layer_norm_", names.the("mlp_norm"), other)
        if names.gate and names.gate != names.up:
            gate = names.the("gate")
            yield gated(f"{fc1}.weight", f"{gate}.weight", f"{up}.weight")
            if there := self.bias:
                both = f"{gate}.bias", f"{up}.bias"
                yield gated(f"{fc1}.bias", *both, bias=True, when=there.when, hf_when=there.hf_when)
        else:
            rows = "(half ffn)" if names.gate else "ffn"
            yield from at.linear(fc1, up, rows, "hidden", "ffn", self.bias)
        down = names.the("down")
        yield from at.linear(at.layer + "mlp.linear_fc2", down, "hidden", "ffn", "ffn", self.bias)
        if names.mlp_output_norm:
            yield from at.norms(at.layer + self.after, names.the("mlp_output_norm"))

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of the inner width."""
        return {"ffn": config["ffn_hidden_size"], "half": 2}


@dataclass(frozen=True, slots=True)
class Mixture:
    """Experts, of which a router picks some for each token.

    ``stacked``: they are slices of one tensor [experts, in, out], whose last axis has these factors:
    ``half moe_ffn`` for all of gate before all of up, ``moe_ffn half`` for the two alternating; "": each has
    tensors of its own. ``biases``: of router and experts. ``scores``: a softmax over all experts or a sigmoid
    of each; ``normalized``: the shares of those chosen add up to one, None: unless the config says
    ``moe_router_pre_softmax``. ``scaled_inputs``: tokens are multiplied by their share on the way in, not
    results. ``layer_sets``: the sets "dense" and "sparse" of layers, where not every layer has experts.
    ``whole``: tensor parallelism does not cut them.
    """

    stacked: str = ""
    biases: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalized: bool | None = None
    scaled_inputs: bool = False
    layer_sets: LayerSets | None = None
    #: whether a model's layers are all alike, though they need not be; Megatron then stores them stacked
    uniform_layers: Callable[[Mapping[str, Value]], bool] | None = None
    whole: bool = False
    #: the field of the config that says the inner width of the experts that every token passes
    shared_width: str = "moe_shared_expert_intermediate_size"

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """Norm, router, experts, the expert that every token passes."""
        layers = SPARSE if self.layer_sets else ""
        for rule in self._rules(names, at):
            yield replace(rule, layers=layers)

    def _rules(self, names: Names, at: Place) -> Iterator[Rule]:
        the, mlp = names.the, at.layer + "mlp."
        # megatron-core's layers without TransformerEngine call it what they call the norm of a dense layer
        other_names = () if self.layer_sets else (mlp + "linear_fc1.layer_norm_weight",)
        yield same(
            at.layer + "pre_mlp_layernorm.weight",
            the("mlp_norm") + ".weight",
            "hidden",
            other_names=other_names,
        )
        yield same(mlp + "router.weight", the("router") + ".weight", "experts hidden")
        if self.biases:
            yield same(mlp + "router.bias", the("router") + ".bias", "experts")
        if names.correction:
            rule = same(mlp + "router.expert_bias", the("correction"), "experts")
            yield replace(rule, keeps_dtype=True)
        one = mlp + "experts.local_experts.{expert}."
        yield from self._stacked(names, one) if self.stacked else _gated(names, "expert", one, "moe_ffn")
        if names.shared_up:
            yield from _gated(names, "shared", mlp + "shared_experts.", "shared_ffn")
        if names.shared_scale:
            scale = the("shared_scale") + ".weight"
            yield same(mlp + "shared_experts.gate_weight", scale, "one hidden")

    def _stacked(self, names: Names, one: str) -> Iterator[Rule]:
        window = ((0, "expert", 1, "experts"),)
        for fc, role, rows, columns, stored in (
            ("fc1", "expert_up", "(one half moe_ffn)", "hidden", f"({self.stacked})"),
            ("fc2", "expert_down", "(one hidden)", "moe_ffn", "hidden"),
        ):
            hf, nemo = names.the(role), f"{one}linear_{fc}"
            part = Part(hf, f"one {columns} {stored}", window=window)
            yield Rule(nemo + ".weight", f"{rows} {columns}", (part,), cut="moe_ffn")
            if self.biases:
                part = Part(hf + "_bias", f"one {stored}", window=window)
                yield Rule(nemo + ".bias", rows, (part,), cut="moe_ffn" if fc == "fc1" else None)

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of experts and their inner widths."""
        return {
            "experts": config["num_moe_experts"],
            "moe_ffn": config.get("moe_ffn_hidden_size") or config["ffn_hidden_size"],
            "shared_ffn": config.get(self.shared_width) or 0,
            "half": 2,
            "one": 1,
        }


def _gated(names: Names, kind: str, nemo: str, ffn: str) -> Iterator[Rule]:
    """A gated MLP whose roles begin with ``kind``."""
    gate, up, down = (names.the(f"{kind}_{role}") + ".weight" for role in ("gate", "up", "down"))
    parts = tuple(Part(name, f"{ffn} hidden", (("half", i, 1),)) for i, name in enumerate((gate, up)))
    yield Rule(nemo + "linear_fc1.weight", f"(half {ffn}) hidden", parts, cut=ffn)
    yield same(nemo + "linear_fc2.weight", down, f"hidden {ffn}", cut=ffn)
