"""The shapes that the rules of mixtures of experts come in, and the sizes they name."""

from __future__ import annotations

from collections.abc import Mapping

from nemoconv.mappings.blocks import EMBEDDING, HF, NEMO, OUTPUT, PROJ, QKV, final_norm, input_norm
from nemoconv.mappings.config_fields import Value
from nemoconv.mappings.rules import same
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.mappings.table import Module, Part, Rule

ROUTED = NEMO + "mlp.experts.local_experts.{expert}."
#: what comes before and after the MLP of a layer whose attention has no biases
BEFORE = (EMBEDDING, input_norm(), QKV, PROJ)
AFTER = (final_norm(), OUTPUT)
#: megatron-core's layers without TransformerEngine call it what they call the norm of a dense layer
EXPERT_NORM = same(
    NEMO + "pre_mlp_layernorm.weight",
    HF + "post_attention_layernorm.weight",
    "hidden",
    also=(NEMO + "mlp.linear_fc1.layer_norm_weight",),
)
MODULES = (
    Module(NEMO + "self_attention.core_attention"),
    Module(NEMO + "self_attention.linear_proj"),
    Module(NEMO + "self_attention.linear_qkv"),
    Module(NEMO + "pre_mlp_layernorm"),
    Module(ROUTED + "linear_fc1"),
    Module(ROUTED + "linear_fc2"),
    Module("decoder.final_layernorm"),
)


def router(hf: str, *, layers: str = "") -> Rule:
    """The router [num_moe_experts, hidden_size], whole on every rank."""
    return _on(layers, same(NEMO + "mlp.router.weight", HF + hf, "experts hidden"))


def experts(gate: str, up: str, down: str, *, layers: str = "") -> tuple[Rule, Rule]:
    """One expert's gate, up and down <-> ``linear_fc1`` and ``linear_fc2`` of ``local_experts.{expert}``."""
    axes = "moe_ffn hidden"
    parts = (Part(HF + gate, axes, (("half", 0, 1),)), Part(HF + up, axes, (("half", 1, 1),)))
    return (
        Rule(ROUTED + "linear_fc1.weight", "(half moe_ffn) hidden", parts, cut="moe_ffn", layers=layers),
        _on(layers, same(ROUTED + "linear_fc2.weight", HF + down, "hidden moe_ffn", cut="moe_ffn")),
    )


def shared_experts(prefix: str, *, layers: str = "") -> tuple[Rule, Rule]:
    """The experts that every token passes, which both sides store as one gated layer."""
    axes = "shared_ffn hidden"
    parts = (
        Part(f"{HF}{prefix}.gate_proj.weight", axes, (("half", 0, 1),)),
        Part(f"{HF}{prefix}.up_proj.weight", axes, (("half", 1, 1),)),
    )
    nemo = NEMO + "mlp.shared_experts."
    down = same(
        nemo + "linear_fc2.weight", f"{HF}{prefix}.down_proj.weight", "hidden shared_ffn", cut="shared_ffn"
    )
    return (
        Rule(nemo + "linear_fc1.weight", "(half shared_ffn) hidden", parts, cut="shared_ffn", layers=layers),
        _on(layers, down),
    )


def _on(layers: str, rule: Rule) -> Rule:
    return Rule(rule.nemo, rule.axes, rule.parts, cut=rule.cut, also=rule.also, when=rule.when, layers=layers)


def moe_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors that these rules name, from a model config."""
    sizes = attention_sizes(config)
    sizes["experts"] = config["num_moe_experts"]
    sizes["moe_ffn"] = config.get("moe_ffn_hidden_size") or config["ffn_hidden_size"]
    sizes["one"] = 1
    sizes["shared_ffn"] = config.get("moe_shared_expert_intermediate_size") or 0
    return sizes
