"""What Parakeet's CTC, RNN-T and TDT models share, around the FastConformer encoder.

Source: nemo/collections/asr/modules/{conv_asr, rnnt}.py, models/{ctc, rnnt, hybrid_rnnt_ctc}*_models.py;
transformers/models/parakeet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ...errors import UnsupportedConfig
from ..hf.fields import ConfigRule, Dtype, Field, Unread, Value
from ..hf.fields_speech import FOR_ONNX_ASR, Nested, RepeatedKey, SameAs
from ..rules import same
from ..table import Rule
from .fastconformer import ENCODER_FIELDS, ENCODER_SETTINGS, encoder_sizes
from .speech import YAML, Always, ClassOf, Setting, SpeechKey, SpeechOnly, UnreadSection, typed

if TYPE_CHECKING:
    import numpy

HYBRID: Final = ("EncDecHybridRNNTCTCBPEModel", "EncDecHybridRNNTCTCModel")
ENCODER: Final[tuple[ConfigRule, ...]] = (Nested("encoder_config", "parakeet_encoder", ENCODER_FIELDS),)
_MOST_LSTMS: Final = 8


def featurizer(
    _config: Mapping[str, Value], extractor: Mapping[str, Value]
) -> dict[str, numpy.ndarray[Any, Any]]:
    """What NeMo's preprocessor keeps as buffers: the window, and the mel filters [1, mels, frequencies]."""
    from .audio import hann_window, mel_filters

    rate, n_fft, mels = extractor["sampling_rate"], extractor["n_fft"], extractor["feature_size"]
    return {
        "preprocessor.featurizer.window": hann_window(extractor["win_length"]),
        "preprocessor.featurizer.fb": mel_filters(rate, n_fft, mels)[None],
    }


def head(nemo: str, hf: str, axes: str, *, other_name: str = "") -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer, ``axes`` output first; ``other_name``: that in a hybrid model."""
    out = axes.split()[0]
    return tuple(  # type: ignore[return-value]
        same(
            f"{nemo}.{kind}",
            f"{hf}.{kind}",
            shape,
            other_names=(f"{other_name}.{kind}",) if other_name else (),
        )
        for kind, shape in (("weight", axes), ("bias", out))
    )


# CTC


@dataclass(frozen=True, slots=True)
class CtcVocabulary:
    """``num_classes`` and ``vocabulary`` of the CTC decoder -> ``vocab_size``, which counts the blank too."""

    paths = frozenset({"decoder.num_classes", "decoder.vocabulary", "decoder.add_blank", "labels"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        count, vocabulary = yaml.get("decoder.num_classes"), yaml.get("decoder.vocabulary")
        if type(count) is not int or count < 1:
            count = len(vocabulary) if isinstance(vocabulary, list) else None
        if isinstance(vocabulary, list) and len(vocabulary) != count:
            raise UnsupportedConfig(
                f"{YAML}: decoder.num_classes={count}, but decoder.vocabulary has {len(vocabulary):,} pieces"
            )
        if yaml.get("decoder.add_blank", True) is not True:
            raise UnsupportedConfig(f"{YAML}: decoder.add_blank is off: a CTC model without a blank")
        config["vocab_size"] = typed("decoder.num_classes", count, int, 1) + 1

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["decoder.num_classes"] = config["vocab_size"] - 1


CTC_FIELDS: Final[tuple[ConfigRule, ...]] = (
    *ENCODER,
    Field("vocab_size", "vocab_size", 1025),
    *FOR_ONNX_ASR,
    Unread(("ctc_loss_reduction", "ctc_zero_infinity", "initializer_range")),
    Dtype(),
)
CTC_SETTINGS: Final[tuple[Setting, ...]] = (
    *ENCODER_SETTINGS,
    ClassOf("decoder", "nemo.collections.asr.modules.ConvASRDecoder"),
    CtcVocabulary(),
    Always((("decoder.feat_in", None),)),
    UnreadSection("decoder", ("init_mode",)),
)

# Transducers


@dataclass(frozen=True, slots=True)
class Labels:
    """The vocabulary, which NeMo's config repeats in several places -> ``vocab_size`` with the blank."""

    paths = frozenset({"decoder.vocab_size", "joint.num_classes", "joint.vocabulary", "labels"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        labels = yaml.get("labels", yaml.get("joint.vocabulary"))
        count = yaml.get("joint.num_classes", yaml.get("decoder.vocab_size"))
        if type(count) is not int or count < 1:
            count = len(labels) if isinstance(labels, list) else None
        for path, found in (("decoder.vocab_size", count), ("labels", count)):
            other = yaml.get(path, found)
            other = len(other) if isinstance(other, list) else other
            if other not in (None, -1, found):
                raise UnsupportedConfig(f"{YAML}: joint.num_classes={count}, but {path} says {other}")
        config["vocab_size"] = typed("joint.num_classes", count, int, 1) + 1

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["decoder.vocab_size"] = yaml["joint.num_classes"] = config["vocab_size"] - 1


@dataclass(frozen=True, slots=True)
class Widths:
    """Widths of prediction and joint network, of which Hugging Face's classes know one -> ``pred_hidden``."""

    paths = frozenset(
        {
            *("decoder.prednet.pred_hidden", "decoder.prednet.rnn_hidden_size"),
            *(f"joint.jointnet.{name}" for name in ("joint_hidden", "encoder_hidden", "pred_hidden")),
        }
    )

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        path = "decoder.prednet.pred_hidden"
        width = config["pred_hidden"] = typed(path, yaml.get(path), int, 1)
        joint, inner = (
            yaml.get("joint.jointnet.joint_hidden"),
            yaml.get("decoder.prednet.rnn_hidden_size", -1),
        )
        if joint != width or inner not in (-1, None, width):
            raise UnsupportedConfig(
                f"{YAML}: pred_hidden={width}, joint_hidden={joint}, rnn_hidden_size={inner}: "
                "Hugging Face's class has one width for all",
                hint="convert --to safetensors to have the weights under NeMo's names",
            )

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        width = config["pred_hidden"]
        yaml |= {
            "model_defaults.enc_hidden": config["d_model"],
            "model_defaults.pred_hidden": width,
            "model_defaults.joint_hidden": width,
            "decoder.prednet.pred_hidden": width,
            "joint.jointnet.joint_hidden": width,
            "joint.jointnet.encoder_hidden": config["d_model"],
            "joint.jointnet.pred_hidden": width,
        }


@dataclass(frozen=True, slots=True)
class MaxSymbols:
    """``decoding.greedy.max_symbols``: how many tokens greedy decoding may emit in one frame."""

    paths = frozenset({"decoding.greedy.max_symbols", "decoding.greedy.max_symbols_per_step"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = yaml.get("decoding.greedy.max_symbols") or yaml.get("decoding.greedy.max_symbols_per_step")
        config["max_symbols"] = typed("decoding.greedy.max_symbols", found or 10, int, 1)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["decoding.strategy"] = "greedy_batch"
        yaml["decoding.greedy.max_symbols"] = config["max_symbols"]


@dataclass(frozen=True, slots=True)
class NoDurations:
    """An RNN-T model: the joint network has no outputs beside the tokens."""

    paths = frozenset({"joint.num_extra_outputs"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        if yaml.get("joint.num_extra_outputs", 0) != 0:
            raise UnsupportedConfig(
                f"{YAML}: joint.num_extra_outputs={yaml['joint.num_extra_outputs']!r}, but the loss is "
                f"{yaml.get('loss.loss_name', 'default')!r}"
            )

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["loss.loss_name"] = "default"


@dataclass(frozen=True, slots=True)
class TokenDurations:
    """``loss.tdt_kwargs.durations``, from which NeMo sets those of its decoding -> ``durations``."""

    paths = frozenset({"joint.num_extra_outputs"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        durations, extra = yaml.get("loss.tdt_kwargs.durations"), yaml.get("joint.num_extra_outputs")
        if not isinstance(durations, list) or not all(type(n) is int and n >= 0 for n in durations):
            raise UnsupportedConfig(f"{YAML}: loss.tdt_kwargs.durations={durations!r} is no list of frames")
        if extra != len(durations):
            raise UnsupportedConfig(
                f"{YAML}: joint.num_extra_outputs={extra!r} for {len(durations)} durations"
            )
        config["durations"] = durations

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        durations = config["durations"]
        yaml |= {
            "model_defaults.tdt_durations": durations,
            "model_defaults.num_tdt_durations": len(durations),
            "joint.num_extra_outputs": len(durations),
            "loss.loss_name": "tdt",
            "loss.tdt_kwargs.durations": durations,
            "decoding.model_type": "tdt",
            "decoding.durations": durations,
        }


def is_tdt(yaml: Mapping[str, Value]) -> bool:
    """Whether a transducer predicts durations: its loss says so."""
    return yaml.get("loss.loss_name") == "tdt"


def transducer_rules() -> tuple[Rule, ...]:
    """Prediction network (an LSTM of one to eight layers) and joint network."""
    lstms = [
        same(
            f"decoder.prediction.dec_rnn.lstm.{side}_{number}",
            f"decoder.lstm.{side}_{number}",
            "gates" if side.startswith("bias") else "gates pred",
            when=(("pred_rnn_layers", layers),),
        )
        for layers in range(1, _MOST_LSTMS + 1)
        for number in [f"l{layer}" for layer in range(layers)]
        for side in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return (
        same("decoder.prediction.embed.weight", "decoder.embedding.weight", "vocab pred"),
        *lstms,
        *head("joint.pred", "decoder.decoder_projector", "joint pred"),
        *head("joint.enc", "encoder_projector", "joint hidden"),
        # the number counts the dropout before it, which is left out where it is 0
        *head("joint.joint_net.2", "joint.head", "outputs joint", other_name="joint.joint_net.1"),
    )


def transducer_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors of a transducer's rules."""
    if config["pred_rnn_layers"] > _MOST_LSTMS:
        raise UnsupportedConfig(
            f"pred_rnn_layers={config['pred_rnn_layers']} is not supported, at most {_MOST_LSTMS}"
        )
    width = config["pred_hidden"]
    return {
        **encoder_sizes(config),
        "pred": width,
        "joint": width,
        "gates": 4 * width,
        "outputs": config["vocab_size"] + len(config.get("durations", ())),
    }


TRANSDUCER_FIELDS: Final[tuple[ConfigRule, ...]] = (
    *ENCODER,
    Field("vocab_size", "vocab_size", 8193),
    SameAs("blank_token_id", "vocab_size", offset=-1),
    Field("decoder_hidden_size", "pred_hidden", 640),
    Field("num_decoder_layers", "pred_rnn_layers", 2),
    Field("hidden_act", "joint_activation", "relu", kind=str),
    Field("max_symbols_per_step", "max_symbols", 10),
    *FOR_ONNX_ASR,
    RepeatedKey("max_tokens_per_step", "max_symbols"),
    Unread(("initializer_range",)),
    Dtype(),
)
TRANSDUCER_SETTINGS: Final[tuple[Setting, ...]] = (
    *ENCODER_SETTINGS,
    ClassOf("decoder", "nemo.collections.asr.modules.RNNTDecoder"),
    Labels(),
    Widths(),
    SpeechKey("decoder.prednet.pred_rnn_layers", "pred_rnn_layers", at_least=1),
    SpeechOnly("decoder.normalization_mode", (None,), written=True),
    SpeechOnly("decoder.blank_as_pad", (True,), written=True),
    UnreadSection("decoder", ("random_state_sampling",)),
    UnreadSection(
        "decoder.prednet",
        ("t_max", "forget_gate_bias", "weights_init_scale", "hidden_hidden_bias_scale"),
    ),
    ClassOf("joint", "nemo.collections.asr.modules.RNNTJoint"),
    SpeechKey("joint.jointnet.activation", "joint_activation", kind=str),
    Always(
        (
            ("decoder.prednet.dropout", 0.2),
            ("joint.jointnet.dropout", 0.2),
            ("joint.log_softmax", None),
            ("joint.preserve_memory", False),
            ("joint.fuse_loss_wer", True),
            ("joint.fused_batch_size", 4),
        )
    ),
    UnreadSection("joint", ("experimental_fuse_loss_wer", "masking_prob")),
    MaxSymbols(),
)
