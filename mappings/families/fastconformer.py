"""The FastConformer encoder, which Parakeet and Canary share.

Source: nemo/collections/asr/modules/conformer_encoder.py and parts/submodules/{subsampling,
conformer_modules, multi_head_attention}.py; transformers/models/parakeet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..hf.fields import ConfigRule, Field, OneOf, Unread, Value
from ..hf.fields_speech import Amount, Dropouts, OneBias, SameAs
from ..rules import same
from ..table import Rule
from .speech import YAML, Always, ClassOf, Setting, SpeechKey, SpeechOnly, UnreadSection, typed

PREPROCESSOR = ("preprocessor.featurizer.window", "preprocessor.featurizer.fb")
_NEMO = "encoder.layers.{layer}."
_BIAS = (("use_bias", True),)
_MOST_LAYERS = 4096
#: halvings of the time axis that there are rules for
_STAGES = range(1, 5)


def encoder_rules(hf: str = "encoder.") -> tuple[Rule, ...]:
    """The encoder's rules; ``hf`` is how its Hugging Face names begin."""
    layer = hf + "layers.{layer}."
    return (
        *(rule for stages in _STAGES for rule in _subsampling(hf, stages)),
        same("encoder.pre_encode.out.weight", hf + "subsampling.linear.weight", "hidden (channels mels)"),
        same("encoder.pre_encode.out.bias", hf + "subsampling.linear.bias", "hidden"),
        *_feed_forward(layer, "1"),
        *_norm(layer, "norm_conv"),
        *_linear("conv.pointwise_conv1", layer + "conv.pointwise_conv1", "(glu hidden)", "hidden_in one"),
        *_linear("conv.depthwise_conv", layer + "conv.depthwise_conv", "hidden", "one kernel"),
        *(
            same(_NEMO + f"conv.batch_norm.{name}", layer + f"conv.norm.{name}", "hidden")
            for name in ("weight", "bias", "running_mean", "running_var")
        ),
        same(_NEMO + "conv.batch_norm.num_batches_tracked", layer + "conv.norm.num_batches_tracked", ""),
        *_linear("conv.pointwise_conv2", layer + "conv.pointwise_conv2", "hidden", "hidden_in one"),
        *_norm(layer, "norm_self_att"),
        *(
            same(_NEMO + f"self_attn.pos_bias_{name}", layer + f"self_attn.bias_{name}", "heads head_dim")
            for name in "uv"
        ),
        *(
            rule
            for name in "qkv"
            for rule in _linear(f"self_attn.linear_{name}", layer + f"self_attn.{name}_proj")
        ),
        *_linear("self_attn.linear_out", layer + "self_attn.o_proj"),
        same(
            _NEMO + "self_attn.linear_pos.weight",
            layer + "self_attn.relative_k_proj.weight",
            "hidden hidden_in",
        ),
        *_feed_forward(layer, "2"),
        *_norm(layer, "norm_out"),
    )


def _subsampling(hf: str, stages: int) -> list[Rule]:
    """One convolution, then pairs of a depthwise and a pointwise one; activations take numbers too."""
    when = (("subsampling_factor", 2**stages),)
    kinds = {0: "channels one rows columns"}
    for stage in range(1, stages):
        kinds[3 * stage - 1] = "channels one rows columns"
        kinds[3 * stage] = "channels channels_in one one_too"
    return [
        rule
        for number, axes in kinds.items()
        for nemo, other in [(f"encoder.pre_encode.conv.{number}.", hf + f"subsampling.layers.{number}.")]
        for rule in (
            same(nemo + "weight", other + "weight", axes, when=when),
            same(nemo + "bias", other + "bias", "channels", when=when),
        )
    ]


def _linear(nemo: str, hf: str, out: str = "hidden", into: str = "hidden_in") -> tuple[Rule, Rule]:
    return (
        same(f"{_NEMO}{nemo}.weight", f"{hf}.weight", f"{out} {into}"),
        same(f"{_NEMO}{nemo}.bias", f"{hf}.bias", out, when=_BIAS),
    )


def _norm(hf: str, name: str) -> tuple[Rule, ...]:
    return tuple(
        same(_NEMO + f"{name}.{kind}", hf + f"{name}.{kind}", "hidden") for kind in ("weight", "bias")
    )


def _feed_forward(hf: str, number: str) -> tuple[Rule, ...]:
    name = f"feed_forward{number}."
    return (
        *_norm(hf, f"norm_feed_forward{number}"),
        *_linear(name + "linear1", hf + name + "linear1", "ffn", "hidden_in"),
        *_linear(name + "linear2", hf + name + "linear2", "hidden", "ffn"),
    )


def check_depth(layers: int) -> None:
    """Refuse a number that no model has, before a rule is made for each layer."""
    if layers > _MOST_LAYERS:
        raise UnsupportedConfig(f"{layers:,} layers are out of range, at most {_MOST_LAYERS:,}")


def encoder_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors that the encoder's rules use."""
    hidden, heads, factor = config["d_model"], config["n_heads"], config["subsampling_factor"]
    check_depth(config["n_layers"])
    if hidden % heads:
        raise UnsupportedConfig(f"d_model={hidden} is not a multiple of n_heads={heads}")
    if factor not in [2**stages for stages in _STAGES]:
        raise UnsupportedConfig(f"subsampling_factor={factor} is not supported, only 2, 4, 8 or 16")
    if config["feat_in"] % factor:
        raise UnsupportedConfig(
            f"feat_in={config['feat_in']} is not a multiple of subsampling_factor={factor}: "
            "NeMo and Hugging Face round differently"
        )
    if config["conv_kernel_size"] % 2 == 0:
        raise UnsupportedConfig(f"conv_kernel_size={config['conv_kernel_size']} is even")
    return {
        "layers": config["n_layers"],
        "hidden": hidden,
        "hidden_in": hidden,
        "ffn": config["d_ff"],
        "heads": heads,
        "head_dim": hidden // heads,
        "kernel": config["conv_kernel_size"],
        "channels": config["subsampling_conv_channels"],
        "channels_in": config["subsampling_conv_channels"],
        "mels": config["feat_in"] // factor,
        "rows": 3,
        "columns": 3,
        "glu": 2,
        "one": 1,
        "one_too": 1,
        "vocab": config["vocab_size"],
        "true_vocab": config["vocab_size"],
    }


@dataclass(frozen=True, slots=True)
class FeedForward:
    """``encoder.ff_expansion_factor`` <-> ``d_ff``, the width of the feed-forward layers."""

    paths = frozenset({"encoder.ff_expansion_factor"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        path = "encoder.ff_expansion_factor"
        config["d_ff"] = config["d_model"] * typed(path, yaml.get(path, 4), int, 1)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        factor, rest = divmod(config["d_ff"], config["d_model"])
        if rest:
            raise UnsupportedConfig(
                f"config.json: intermediate_size={config['d_ff']} is not a multiple of "
                f"hidden_size={config['d_model']}, which NeMo's ff_expansion_factor needs"
            )
        yaml["encoder.ff_expansion_factor"] = factor


@dataclass(frozen=True, slots=True)
class Channels:
    """``encoder.subsampling_conv_channels``, for which -1 means ``d_model``."""

    paths = frozenset({"encoder.subsampling_conv_channels"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        path = "encoder.subsampling_conv_channels"
        value = typed(path, yaml.get(path, -1), int, -1)
        config["subsampling_conv_channels"] = config["d_model"] if value == -1 else value

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["encoder.subsampling_conv_channels"] = config["subsampling_conv_channels"]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Keys that may say in other words what the model does anyway: output width, context, reduction."""

    paths = frozenset(
        f"encoder.{key}" for key in ("feat_out", "conv_context_size", "reduction", "reduction_factor")
    )

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        side = (config["conv_kernel_size"] - 1) // 2
        allowed = {
            "feat_out": (-1, config["d_model"]),
            "conv_context_size": (None, [side, side]),
        }
        for key, values in allowed.items():
            found = yaml.get(f"encoder.{key}", values[0])
            if found not in values:
                raise UnsupportedConfig(
                    f"{YAML}: encoder.{key}={found!r} has no counterpart in Hugging Face's class, "
                    f"only {values[0]!r}",
                    hint="convert --to safetensors to have the weights under NeMo's names",
                )
        reduction = yaml.get("encoder.reduction"), yaml.get("encoder.reduction_factor", 1)
        if reduction[0] and reduction[1] not in (None, 1):
            raise UnsupportedConfig(f"{YAML}: encoder.reduction={reduction[0]!r} has no counterpart")

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml |= {"encoder.feat_out": -1, "encoder.conv_context_size": None}


ENCODER_FIELDS: tuple[ConfigRule, ...] = (
    Field("num_hidden_layers", "n_layers", 24),
    Field("hidden_size", "d_model", 1024),
    Field("num_attention_heads", "n_heads", 8),
    SameAs("num_key_value_heads", "n_heads"),
    Field("intermediate_size", "d_ff", 4096),
    Field("conv_kernel_size", "conv_kernel_size", 9),
    Field("subsampling_factor", "subsampling_factor", 8),
    Field("subsampling_conv_channels", "subsampling_conv_channels", 256),
    Field("num_mel_bins", "feat_in", 80),
    Field("max_position_embeddings", "pos_emb_max_len", 5000),
    Field("scale_input", "xscaling", True, kind=bool),
    OneBias(),
    Amount("dropout", "dropout", 0.1),
    Amount("dropout_positions", "dropout_emb", 0.0),
    Amount("attention_dropout", "dropout_att", 0.1),
    Amount("layerdrop", "stochastic_depth_drop_prob", 0.1),
    Dropouts(),
    OneOf("hidden_act", ("silu", "swish")),
    OneOf("subsampling_conv_kernel_size", (3,)),
    OneOf("subsampling_conv_stride", (2,)),
    Unread(("initializer_range",)),
)

ENCODER_SETTINGS: tuple[Setting, ...] = (
    ClassOf("encoder", "nemo.collections.asr.modules.ConformerEncoder"),
    SpeechKey("encoder.feat_in", "feat_in", at_least=1),
    SpeechKey("encoder.n_layers", "n_layers", at_least=1),
    SpeechKey("encoder.d_model", "d_model", at_least=1),
    SpeechOnly("encoder.subsampling", ("dw_striding",), "striding"),
    SpeechKey("encoder.subsampling_factor", "subsampling_factor", 4, at_least=1),
    Channels(),
    SpeechOnly("encoder.causal_downsampling", (False,), written=True),
    FeedForward(),
    SpeechOnly("encoder.self_attention_model", ("rel_pos",), written=True),
    SpeechKey("encoder.n_heads", "n_heads", 4, at_least=1),
    SpeechOnly("encoder.att_context_size", ([-1, -1], [[-1, -1]], None), None),
    SpeechOnly("encoder.att_context_style", ("regular",), written=True),
    SpeechOnly("encoder.att_chunk_context_size", (None,)),
    SpeechOnly("encoder.conv_context_style", ("regular",)),
    SpeechOnly("encoder.global_tokens", (0,)),
    SpeechOnly("encoder.conv_dual_mode", (False,)),
    SpeechKey("encoder.xscaling", "xscaling", True, bool),
    SpeechKey("encoder.pos_emb_max_len", "pos_emb_max_len", 5000, at_least=1),
    SpeechKey("encoder.conv_kernel_size", "conv_kernel_size", 31, at_least=1),
    SpeechOnly("encoder.conv_norm_type", ("batch_norm",), written=True),
    Shapes(),
    SpeechKey("encoder.use_bias", "use_bias", True, bool),
    SpeechKey("encoder.dropout", "dropout", 0.1, float),
    SpeechKey("encoder.dropout_emb", "dropout_emb", 0.1, float),
    SpeechKey("encoder.dropout_att", "dropout_att", 0.0, float),
    SpeechKey("encoder.stochastic_depth_drop_prob", "stochastic_depth_drop_prob", 0.0, float),
    Always((("encoder.untie_biases", True), ("encoder.dropout_pre_encoder", 0.1))),
    UnreadSection(
        "encoder",
        (
            *("att_context_probs", "global_attn_separate", "global_tokens_spacing", "reduction_position"),
            *("stochastic_depth_mode", "stochastic_depth_start_layer", "subsampling_conv_chunking_factor"),
            *("sync_max_audio_length", "use_pytorch_sdpa", "use_pytorch_sdpa_backends"),
        ),
    ),
)
