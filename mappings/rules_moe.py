"""The shapes that the rules of mixtures of experts come in, and the sizes they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .blocks import EMBEDDING, HF, NEMO, OUTPUT, PROJ, QKV, final_norm, input_norm
from .hf.fields import Value
from .mtp import further_sizes
from .rules import same
from .sizes import attention_sizes
from .table import Module, Part, Rule

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


def sparse_modules() -> tuple[Module, ...]:
    """Modules of a decoder with layers of two sets, ``dense`` and ``sparse``."""
    attention = ("core_attention", "linear_proj", "linear_qkv")
    return (
        *(Module(f"{NEMO}self_attention.{name}") for name in attention),
        *(Module(f"{NEMO}mlp.linear_{name}", layers="dense") for name in ("fc1", "fc2")),
        Module(NEMO + "pre_mlp_layernorm", layers="sparse"),
        *(Module(f"{ROUTED}linear_{name}", layers="sparse") for name in ("fc1", "fc2")),
        Module("decoder.final_layernorm"),
    )


def shared_modules() -> tuple[Module, ...]:
    return tuple(
        Module(f"{NEMO}mlp.shared_experts.linear_{name}", layers="sparse") for name in ("fc1", "fc2")
    )


def renamed(rule: Rule, old: str, new: str) -> Rule:
    """The rule with ``old`` spelled ``new`` in its Hugging Face names."""
    return replace(rule, parts=tuple(replace(part, hf=part.hf.replace(old, new)) for part in rule.parts))


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


def stacked_experts(prefix: str, order: str, *, biases: bool = False, layers: str = "") -> tuple[Rule, ...]:
    """Experts that Hugging Face stacks in one tensor, [experts, in, out].

    ``gate_up_proj`` [experts, hidden_size, 2 * moe_ffn_hidden_size]; ``order`` names the factors of its last
    axis: ``half moe_ffn`` for all of gate before all of up, ``moe_ffn half`` for the two alternating.
    ``down_proj`` [experts, moe_ffn_hidden_size, hidden_size]. Biases lack the axis in between.
    """
    window = ((0, "expert", 1, "experts"),)
    up, down = f"{HF}{prefix}gate_up_proj", f"{HF}{prefix}down_proj"
    rules = [
        Rule(
            ROUTED + "linear_fc1.weight",
            "(one half moe_ffn) hidden",
            (Part(up, f"one hidden ({order})", window=window),),
            cut="moe_ffn",
            layers=layers,
        ),
        Rule(
            ROUTED + "linear_fc2.weight",
            "(one hidden) moe_ffn",
            (Part(down, "one moe_ffn hidden", window=window),),
            cut="moe_ffn",
            layers=layers,
        ),
    ]
    if biases:
        part = Part(up + "_bias", f"one ({order})", window=window)
        rules.append(
            Rule(ROUTED + "linear_fc1.bias", "(one half moe_ffn)", (part,), cut="moe_ffn", layers=layers)
        )
        part = Part(down + "_bias", "one hidden", window=window)
        rules.append(Rule(ROUTED + "linear_fc2.bias", "(one hidden)", (part,), layers=layers))
    return tuple(rules)


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
    return sizes | further_sizes(config)
