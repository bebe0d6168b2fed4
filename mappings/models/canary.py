"""Canary: a FastConformer encoder and a Transformer decoder, ``CanaryForConditionalGeneration`` and NeMo's
``EncDecMultiTaskModel``.

NeMo's fixed positions hold sine and cosine of a frequency side by side, Hugging Face's all sines, then all
cosines. The decoder adds them to its hidden states, so on the way the hidden axis of the decoder changes its
order: ``(frequency phase)`` in NeMo is ``(phase frequency)`` in Hugging Face, in every tensor that has it.

Source: nemo/collections/asr/models/aed_multitask_models.py, modules/transformer/transformer_{modules,
decoders}.py; transformers/models/canary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ...errors import UnsupportedConfig
from ..families.fastconformer import (
    ENCODER_FIELDS,
    ENCODER_SETTINGS,
    PREPROCESSOR,
    check_depth,
    encoder_rules,
    encoder_sizes,
)
from ..families.parakeet import featurizer
from ..families.speech import (
    YAML,
    Always,
    ArchiveOnly,
    ClassOf,
    Setting,
    Speech,
    SpeechKey,
    SpeechOnly,
    UnreadSection,
)
from ..hf.fields import ConfigRule, Dtype, Field, OneOf, Unread, Value
from ..hf.fields_speech import FOR_ONNX_ASR, Amount, Nested, RepeatedKey, SameAs
from ..table import Part, Rule

if TYPE_CHECKING:
    import numpy


# tensors

_NEMO: Final = "transf_decoder._decoder.layers.{layer}."
_HF: Final = "model.decoder.layers.{layer}."
POSITIONS: Final = "transf_decoder._embedding.position_embedding.pos_enc"
EMBEDDING: Final = "transf_decoder._embedding.token_embedding.weight"
#: elements of the table of positions, which is computed; Canary's has 2**20
_MOST_POSITIONS: Final = 1 << 27
OUTPUT: Final = "log_softmax.mlp.layer0.weight"
#: the decoder's hidden axis on either side
_ORDER: Final = ("(frequency phase)", "(phase frequency)")


def _pair(nemo: str, hf: str, axes: str) -> Rule:
    """One tensor on both sides; ``decoder`` in ``axes`` stands for the decoder's hidden axis."""
    ours, theirs = (axes.replace("decoder", order) for order in _ORDER)
    return Rule(nemo, ours, (Part(hf, theirs),))


def _linear(nemo: str, hf: str, out: str, into: str) -> tuple[Rule, Rule]:
    return (
        _pair(nemo + ".weight", hf + ".weight", f"{out} {into}"),
        _pair(nemo + ".bias", hf + ".bias", out),
    )


def _norm(nemo: str, hf: str) -> tuple[Rule, Rule]:
    return _pair(nemo + ".weight", hf + ".weight", "decoder"), _pair(nemo + ".bias", hf + ".bias", "decoder")


def _attention(nemo: str, hf: str, keys: str) -> tuple[Rule, ...]:
    """``keys`` is the axis that keys and values are made from: the encoder's is in one order everywhere."""
    return (
        *_linear(_NEMO + nemo + ".query_net", _HF + hf + ".q_proj", "attention", "decoder"),
        *_linear(_NEMO + nemo + ".key_net", _HF + hf + ".k_proj", "attention", keys),
        *_linear(_NEMO + nemo + ".value_net", _HF + hf + ".v_proj", "attention", keys),
        *_linear(_NEMO + nemo + ".out_projection", _HF + hf + ".o_proj", "decoder", "attention"),
    )


def _decoder_layer() -> tuple[Rule, ...]:
    return (
        *_norm(_NEMO + "layer_norm_1", _HF + "input_layernorm"),
        *_attention("first_sub_layer", "self_attn", "decoder"),
        *_norm(_NEMO + "layer_norm_2", _HF + "post_attention_layernorm"),
        *_attention("second_sub_layer", "encoder_attn", "hidden"),
        *_norm(_NEMO + "layer_norm_3", _HF + "final_layernorm"),
        *_linear(_NEMO + "third_sub_layer.dense_in", _HF + "mlp.fc1", "inner", "decoder"),
        *_linear(_NEMO + "third_sub_layer.dense_out", _HF + "mlp.fc2", "decoder", "inner"),
    )


def _in_set(rules: tuple[Rule, ...], name: str) -> tuple[Rule, ...]:
    """``rules``, those of layers being for the layers of set ``name``."""
    return tuple(replace(rule, layers=name) if rule.holes else rule for rule in rules)


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    return {
        "encoder": frozenset(range(config["n_layers"])),
        "decoder": frozenset(range(config["num_layers"])),
    }


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors of Canary's rules."""
    encoder = encoder_sizes(config)
    hidden = config["hidden_size"]
    check_depth(config["num_layers"])
    if config["max_sequence_length"] * hidden > _MOST_POSITIONS:
        raise UnsupportedConfig(f"max_sequence_length={config['max_sequence_length']:,} is out of range")
    if hidden != encoder["hidden"]:
        raise UnsupportedConfig(
            f"the encoder is {encoder['hidden']} wide, the decoder {hidden}: "
            "Hugging Face's class has no projection between them"
        )
    if hidden % config["num_attention_heads"] or hidden % 2:
        raise UnsupportedConfig(f"hidden_size={hidden} is odd, or no multiple of num_attention_heads")
    return {
        **encoder,
        "layers": max(config["n_layers"], config["num_layers"]),
        "frequency": hidden // 2,
        "phase": 2,
        "attention": hidden,
        "inner": config["inner_size"],
    }


RULES = (
    *_in_set(encoder_rules("model.encoder."), "encoder"),
    *_in_set(_decoder_layer(), "decoder"),
    _pair(EMBEDDING, "model.decoder.embed_tokens.weight", "vocab decoder"),
    *_norm("transf_decoder._embedding.layer_norm", "model.decoder.embedding_layernorm"),
    *_norm("transf_decoder._decoder.final_layer_norm", "model.decoder.norm"),
    _pair("log_softmax.mlp.layer0.bias", "proj_out.bias", "vocab"),
)


# config.json and model_config.yaml

#: what CanaryConfig takes for the encoder's missing keys, unlike ParakeetEncoderConfig
_ENCODER_DEFAULTS: Final = (
    ("num_hidden_layers", 32),
    ("num_mel_bins", 128),
    ("scale_input", False),
    ("layerdrop", 0.0),
)
#: of no layers, which say nothing then
_TRANSFORMER_ENCODER: Final = (
    *("_target_", "hidden_size", "inner_size", "num_attention_heads", "ffn_dropout", "attn_score_dropout"),
    *("attn_layer_dropout", "mask_future", "pre_ln", "pre_ln_final_layer_norm", "hidden_act"),
)
_DICT: Final = "transf_decoder.config_dict."


@dataclass(frozen=True, slots=True)
class DecoderHeadDim:
    """``head_dim``, which NeMo computes."""

    hf_keys = frozenset({"head_dim"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        width = config["hidden_size"] // config["num_attention_heads"]
        if hf.get("head_dim", 128) not in (None, width):
            raise UnsupportedConfig(f"config.json: head_dim={hf.get('head_dim', 128)!r}, NeMo takes {width}")

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["head_dim"] = config["hidden_size"] // config["num_attention_heads"]


@dataclass(frozen=True, slots=True)
class DecoderVocabulary:
    """The vocabulary, a multiple of 8 in NeMo: ``head.num_classes``, repeated in the decoder's config."""

    paths = frozenset({"head.num_classes", _DICT + "vocab_size"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        count = yaml.get("head.num_classes")
        if type(count) is not int or not 0 < count < 1 << 40:
            raise UnsupportedConfig(f"{YAML}: head.num_classes={count!r} is no vocabulary size")
        if yaml.get(_DICT + "vocab_size") not in (None, count):
            raise UnsupportedConfig(
                f"{YAML}: head.num_classes={count}, but the decoder has {yaml[_DICT + 'vocab_size']!r}"
            )
        config["vocab_size"] = count

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        if config["vocab_size"] % 8:
            raise UnsupportedConfig(
                f"config.json: vocab_size={config['vocab_size']} is no multiple of 8, which NeMo makes it"
            )
        yaml["head.num_classes"] = yaml[_DICT + "vocab_size"] = config["vocab_size"]


@dataclass(frozen=True, slots=True)
class HiddenSizes:
    """The decoder's width, which NeMo's config repeats, and the encoder's, which must be the same."""

    paths = frozenset({_DICT + "hidden_size", "head.hidden_size"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        width = yaml.get(_DICT + "hidden_size")
        if type(width) is not int or not 0 < width < 1 << 40:
            raise UnsupportedConfig(f"{YAML}: {_DICT}hidden_size={width!r} is no width")
        config["hidden_size"] = width

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        width = config["hidden_size"]
        for path in self.paths:
            yaml[path] = width
        for name in ("asr_enc_hidden", "lm_enc_hidden", "lm_dec_hidden"):
            yaml[f"model_defaults.{name}"] = width


@dataclass(frozen=True, slots=True)
class DecoderActivation:
    """``hidden_act`` of the decoder, of which NeMo knows two."""

    paths = frozenset({_DICT + "hidden_act"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["hidden_act"] = self._known(yaml.get(_DICT + "hidden_act", "relu"), YAML)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml[_DICT + "hidden_act"] = self._known(config["hidden_act"], "config.json")

    @staticmethod
    def _known(name: Value, where: str) -> Value:
        if name not in ("relu", "gelu"):
            raise UnsupportedConfig(
                f"{where}: hidden_act={name!r} of the decoder, only relu and gelu are known"
            )
        return name


@dataclass(frozen=True, slots=True)
class NoTransformerEncoder:
    """``transf_encoder``: a Transformer between the two, of which Hugging Face's class has none."""

    paths = frozenset({"transf_encoder.num_layers"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        if yaml.get("transf_encoder.num_layers") not in (None, 0):
            raise UnsupportedConfig(
                f"{YAML}: transf_encoder.num_layers={yaml['transf_encoder.num_layers']!r} has no counterpart "
                "in Hugging Face's class, only 0",
                hint="convert --to safetensors to have the weights under NeMo's names",
            )

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml["transf_encoder.num_layers"] = 0


_DECODER_FIELDS: Final = (
    Field("hidden_size", "hidden_size", 1024),
    Field("num_hidden_layers", "num_layers", 8),
    Field("num_attention_heads", "num_attention_heads", 8),
    SameAs("num_key_value_heads", "num_attention_heads"),
    DecoderHeadDim(),
    Field("intermediate_size", "inner_size", 4096),
    Field("hidden_act", "hidden_act", "relu", kind=str),
    Field("max_position_embeddings", "max_sequence_length", 1024),
    Field("vocab_size", "vocab_size", 16384),
    Amount("attention_dropout", "attn_score_dropout", 0.0),
    OneOf("attention_bias", (True,)),
    Unread(("initializer_range",)),
)
FIELDS: Final[tuple[ConfigRule, ...]] = (
    Nested("encoder_config", "parakeet_encoder", ENCODER_FIELDS, _ENCODER_DEFAULTS),
    Nested("decoder_config", "canary_decoder", _DECODER_FIELDS),
    SameAs("vocab_size", "vocab_size"),
    *FOR_ONNX_ASR,
    RepeatedKey("max_sequence_length", "max_sequence_length"),
    OneOf("tie_word_embeddings", (True,)),
    Unread(("initializer_range",)),
    Dtype(),
)
SETTINGS: Final[tuple[Setting, ...]] = (
    *ENCODER_SETTINGS,
    ClassOf("transf_decoder", "nemo.collections.asr.modules.transformer.get_nemo_transformer"),
    HiddenSizes(),
    SpeechKey(_DICT + "num_layers", "num_layers", at_least=1),
    SpeechKey(_DICT + "num_attention_heads", "num_attention_heads", at_least=1),
    SpeechKey(_DICT + "inner_size", "inner_size", at_least=1),
    DecoderActivation(),
    SpeechKey(_DICT + "max_sequence_length", "max_sequence_length", 512, at_least=1),
    SpeechKey(_DICT + "attn_score_dropout", "attn_score_dropout", 0.0, float),
    SpeechOnly(_DICT + "learn_positional_encodings", (False,), written=True),
    SpeechOnly(_DICT + "pre_ln", (True,), False),
    SpeechOnly("transf_decoder.pre_ln_final_layer_norm", (True,), written=True),
    SpeechOnly("transf_decoder.encoder", (False, None), True),
    Always(
        (
            (_DICT + "num_token_types", 0),
            (_DICT + "embedding_dropout", 0.1),
            (_DICT + "ffn_dropout", 0.1),
            (_DICT + "attn_layer_dropout", 0.1),
            ("transf_decoder.model_name", None),
            ("transf_decoder.pretrained", False),
            ("head.dropout", 0.0),
            ("head.activation", "relu"),
            ("head.log_softmax", True),
            ("head.use_transformer_init", True),
        )
    ),
    NoTransformerEncoder(),
    UnreadSection("transf_encoder", _TRANSFORMER_ENCODER),
    ClassOf("head", "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier"),
    DecoderVocabulary(),
    SpeechOnly("head.num_layers", (1,), written=True),
)


def _constants(
    config: Mapping[str, Value], extractor: Mapping[str, Value]
) -> dict[str, numpy.ndarray[Any, Any]]:
    from ..families.audio import sinusoids

    positions = sinusoids(config["max_sequence_length"], config["hidden_size"])
    return {**featurizer(config, extractor), POSITIONS: positions}


CANARY = Speech(
    ("canary",),
    "CanaryForConditionalGeneration",
    stacks=(),
    nemo2=ArchiveOnly("nemo.collections.asr.models.aed_multitask_models", "EncDecMultiTaskModel", "", {}),
    targets=("EncDecMultiTaskModel",),
    head="aed",
    config=FIELDS,
    settings=SETTINGS,
    extra=RULES,
    sizes=sizes,
    layer_sets=layer_sets,
    ignored=(*PREPROCESSOR, POSITIONS, "transf_decoder._embedding.token_type_embedding.weight"),
    tied=(("proj_out.weight", "model.decoder.embed_tokens.weight"), (OUTPUT, EMBEDDING)),
    copies=((OUTPUT, EMBEDDING),),
    constants=_constants,
    proofs=("bit-equal", "transformers outputs", "real NeMo restore, by hand"),
)
