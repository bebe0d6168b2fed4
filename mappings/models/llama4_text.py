"""The text model of Llama 4: experts on all or some layers, a shared expert, layers without rope.

NeMo's Llama 4 agrees with transformers up to ``attention_chunk_size`` tokens: beyond that NeMo cuts into
chunks also the layers without rope, which transformers does not.

Source: transformers/models/llama4, nemo/collections/llm/gpt/model/llama.py (``Llama4Config``) and
llama4_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...errors import UnsupportedConfig
from ..blocks.mlp import Mixture
from ..blocks.stack import Blocks
from ..hf.fields import Field, Fixed, Unread, Value, check_kind
from ..llama_like import llama_like
from ..nemo2.entry import Nemo2
from ..nemo2.fields import Count, NemoFixed, Same, plain, text
from ..nemo2.fields_moe import RepeatedField
from ..nemo2.symbols import LLAMA4_SPEC


@dataclass(frozen=True, slots=True)
class ExpertLayers:
    """``moe_layers``, or every ``interleave_moe_layer_step``-th layer <-> ``moe_layer_freq``: 1 where all
    layers have experts, else a list of 0 and 1 a layer."""

    hf_keys = frozenset({"moe_layers", "interleave_moe_layer_step"})
    fields = frozenset({"moe_layer_freq"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        layers, given = config["num_layers"], hf.get("moe_layers")
        step = check_kind("interleave_moe_layer_step", hf.get("interleave_moe_layer_step", 1), int)
        chosen = list(range(step - 1, layers, step)) if given is None else given
        if (
            not isinstance(chosen, list)
            or not chosen
            or not set(map(repr, chosen)) <= set(map(repr, range(layers)))
        ):
            raise UnsupportedConfig(f"config.json: moe_layers={chosen!r} does not name layers with experts")
        config["moe_layer_freq"] = normal_freq([int(layer in chosen) for layer in range(layers)])

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        freq, layers = config["moe_layer_freq"], range(config["num_layers"])
        chosen = [layer for layer in layers if freq == 1 or freq[layer]]
        hf["moe_layers"] = chosen
        step = chosen[0] + 1
        if chosen == list(layers)[step - 1 :: step]:
            hf["interleave_moe_layer_step"] = step


def normal_freq(freq: list[int]) -> Value:
    return 1 if all(freq) else freq


@dataclass(frozen=True, slots=True)
class ExpertFreq:
    """megatron-core's ``moe_layer_freq``: 0 and 1 a layer, or n for every n-th layer from the first on."""

    names = frozenset({"moe_layer_freq"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found, layers = plain(fields["moe_layer_freq"]), config["num_layers"]
        freq = [int(layer % found == 0) for layer in range(layers)] if type(found) is int and found else found
        if not isinstance(freq, (list, tuple)) or len(freq) != layers or set(freq) - {0, 1} or not any(freq):
            raise UnsupportedConfig(f"the NeMo config says moe_layer_freq={text(found)} of {layers} layers")
        config["moe_layer_freq"] = normal_freq(list(freq))

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["moe_layer_freq"] = config["moe_layer_freq"]


@dataclass(frozen=True, slots=True)
class LayersWithoutRope:
    """``no_rope_layers`` (1 where a layer turns its heads), or every ``no_rope_layer_interval``-th that does
    not, with ``layer_types`` <-> ``nope_layer_interval``, None where all do."""

    hf_keys = frozenset({"no_rope_layers", "no_rope_layer_interval", "layer_types"})
    fields = frozenset({"nope_layer_interval"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        layers = config["num_layers"]
        interval = check_kind("no_rope_layer_interval", hf.get("no_rope_layer_interval", 4), int)
        flags = hf.get("no_rope_layers") or _turned(interval, layers)
        if not isinstance(flags, list) or len(flags) < layers:
            raise UnsupportedConfig(f"config.json: no_rope_layers={flags!r} has less than {layers} layers")
        flags = [int(bool(flag)) for flag in flags[:layers]]
        found = next((n for n in range(1, layers + 2) if _turned(n, layers) == flags), None)
        if found is None:
            raise UnsupportedConfig(
                f"config.json: no_rope_layers={flags} is not every n-th layer, which is all that NeMo can say"
            )
        kinds = ["chunked_attention" if flag else "full_attention" for flag in flags]
        if hf.get("layer_types") not in (None, kinds):
            raise UnsupportedConfig(
                "config.json: layer_types must be chunked_attention with rope, full_attention without"
            )
        config["nope_layer_interval"] = None if found > layers else found

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        interval = config["nope_layer_interval"] or config["num_layers"] + 1
        hf["no_rope_layer_interval"] = interval
        hf["no_rope_layers"] = _turned(interval, config["num_layers"])


def _turned(interval: int, layers: int) -> list[int]:
    return [int((layer + 1) % interval != 0) for layer in range(layers)]


@dataclass(frozen=True, slots=True)
class NopeInterval:
    """``nope_layer_interval``: every n-th layer has no rotary embedding."""

    names = frozenset({"nope_layer_interval"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        interval = fields["nope_layer_interval"]
        if interval is not None and (type(interval) is not int or interval < 1):
            raise UnsupportedConfig(f"the NeMo config says nope_layer_interval={text(interval)}")
        none = interval is None or interval > config["num_layers"]
        config["nope_layer_interval"] = None if none else interval

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["nope_layer_interval"] = config["nope_layer_interval"]


@dataclass(frozen=True, slots=True)
class TemperatureTuning:
    """``attn_temperature_tuning`` sharpens layers without rope beyond ``floor_scale`` tokens, which NeMo does
    not do. It must be off, or beyond the reach of the model, or be ignored on demand."""

    hf_keys = frozenset({"attn_temperature_tuning", "floor_scale", "attn_scale"})
    fields = frozenset[str]()
    #: what --allow-ignored makes of a key
    when_ignored: ClassVar[Mapping[str, Value]] = {"attn_temperature_tuning": False}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        floor = check_kind("floor_scale", hf.get("floor_scale", 8192), int)
        reached = config["seq_length"] >= floor and config["nope_layer_interval"] is not None
        if hf.get("attn_temperature_tuning", True) and reached:
            raise UnsupportedConfig(
                "config.json: attn_temperature_tuning is on, which NeMo does not know: from token "
                f"{floor:,} on it would compute something else",
                hint='if texts stay shorter, pass "--allow-ignored attn_temperature_tuning"',
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["attn_temperature_tuning"] = False


@dataclass(frozen=True, slots=True)
class UnscaledRope:
    """NeMo's ``Llama4Config`` has ``rope_scaling`` and ``rope_scaling_factor``, and builds the model without
    (``GPTConfig.configure_model``, NeMo 2.5 to 2.7), so a scaled model would come out unscaled. Run with
    NeMo 2.5.3: ``rope_scaling=True, rope_scaling_factor=16`` gives the frequencies of an unscaled model."""

    names = frozenset({"rope_scaling", "rope_scaling_factor", "seq_len_interpolation_factor"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["rope_scaling"] = None
        if fields["rope_scaling"] or fields.get("seq_len_interpolation_factor") is not None:
            raise UnsupportedConfig(
                "the NeMo config says rope_scaling=True, but NeMo builds the model without it: nobody knows "
                "which of the two its weights are for"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if config["rope_scaling"] is not None:
            raise UnsupportedConfig(
                f"config.json: the rotary scaling {dict(config['rope_scaling'])} has no counterpart: NeMo's "
                "Llama4Config has a field for it, but builds the model without"
            )
        fields["rope_scaling"] = False


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    """The layers with experts, and those without."""
    freq, layers = config["moe_layer_freq"], range(config["num_layers"])
    sparse = frozenset(layer for layer in layers if freq == 1 or freq[layer])
    return {"sparse": sparse, "dense": frozenset(layers) - sparse}


def uniform_layers(config: Mapping[str, Value]) -> bool:
    """Whether all layers have experts."""
    return bool(config["moe_layer_freq"] == 1)


GATED = ("gate", "up", "down")

LLAMA4_TEXT = llama_like(
    "llama4_text",
    "Llama4ForCausalLM",
    names={
        **{role: f"feed_forward.{role}_proj" for role in GATED},
        "router": "feed_forward.router",
        **dict.fromkeys(("expert_gate", "expert_up"), "feed_forward.experts.gate_up_proj"),
        "expert_down": "feed_forward.experts.down_proj",
        **{f"shared_{role}": f"feed_forward.shared_expert.{role}_proj" for role in GATED},
    },
    blocks=Blocks(
        mixture=Mixture(
            "half moe_ffn",
            scores="sigmoid",
            normalized=False,
            scaled_inputs=True,
            layer_sets=layer_sets,
            uniform_layers=uniform_layers,
            shared_width="moe_ffn_hidden_size",
        ),
        neighbours=True,
        chunked=True,
    ),
    keys={"intermediate_size": "intermediate_size_mlp"},
    defaults={
        "num_hidden_layers": 48,
        "hidden_size": 5120,
        "intermediate_size_mlp": 16384,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 202048,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    },
    config=(
        Field("intermediate_size", "moe_ffn_hidden_size", 8192),
        Field("num_local_experts", "num_moe_experts", 16),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        Field("use_qk_norm", "qk_l2_norm", True, kind=bool),
        Field("attention_chunk_size", "attention_chunk_size", 8192),
        Fixed("num_experts_per_tok", 1),
        Unread(("for_llm_compressor", "cache_implementation")),
        ExpertLayers(),
        LayersWithoutRope(),
        TemperatureTuning(),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.llama",
        "LlamaModel",
        "Llama4Config",
        (
            NemoFixed("moe_router_topk", 1, written=True),
            NemoFixed("moe_router_pre_softmax", False, written=True),
            NemoFixed("moe_router_score_function", "sigmoid", written=True),
            NemoFixed("moe_apply_probs_on_input", True, written=True),
            NemoFixed("transformer_layer_spec", LLAMA4_SPEC),
            RepeatedField("moe_shared_expert_intermediate_size", "moe_ffn_hidden_size"),
            Same("qk_l2_norm"),
            Count("attention_chunk_size"),
            ExpertFreq(),
            NopeInterval(),
            UnscaledRope(),
        ),
    ),
    samples=({"attn_temperature_tuning": False},),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (up to attention_chunk_size tokens)",
    ),
)
