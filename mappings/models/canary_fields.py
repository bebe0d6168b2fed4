"""Canary: what config.json and NeMo's ``model_config.yaml`` say of it.

Source: nemo/collections/asr/models/aed_multitask_models.py; transformers/models/canary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ..families.fastconformer import ENCODER_FIELDS, ENCODER_SETTINGS
from ..families.speech import YAML, Always, ClassOf, Entry, Only, Setting, Unread
from ..hf.fields import ConfigRule, Dtype, Field, OneOf, Value
from ..hf.fields import Unread as UnreadKeys
from ..hf.fields_speech import FOR_ONNX_ASR, Amount, Nested, Repeated, SameAs

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
class HeadDim:
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
class Classes:
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
class Activation:
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
    HeadDim(),
    Field("intermediate_size", "inner_size", 4096),
    Field("hidden_act", "hidden_act", "relu", kind=str),
    Field("max_position_embeddings", "max_sequence_length", 1024),
    Field("vocab_size", "vocab_size", 16384),
    Amount("attention_dropout", "attn_score_dropout", 0.0),
    OneOf("attention_bias", (True,)),
    UnreadKeys(("initializer_range",)),
)
FIELDS: Final[tuple[ConfigRule, ...]] = (
    Nested("encoder_config", "parakeet_encoder", ENCODER_FIELDS, _ENCODER_DEFAULTS),
    Nested("decoder_config", "canary_decoder", _DECODER_FIELDS),
    SameAs("vocab_size", "vocab_size"),
    *FOR_ONNX_ASR,
    Repeated("max_sequence_length", "max_sequence_length"),
    OneOf("tie_word_embeddings", (True,)),
    UnreadKeys(("initializer_range",)),
    Dtype(),
)
SETTINGS: Final[tuple[Setting, ...]] = (
    *ENCODER_SETTINGS,
    ClassOf("transf_decoder", "nemo.collections.asr.modules.transformer.get_nemo_transformer"),
    HiddenSizes(),
    Entry(_DICT + "num_layers", "num_layers", at_least=1),
    Entry(_DICT + "num_attention_heads", "num_attention_heads", at_least=1),
    Entry(_DICT + "inner_size", "inner_size", at_least=1),
    Activation(),
    Entry(_DICT + "max_sequence_length", "max_sequence_length", 512, at_least=1),
    Entry(_DICT + "attn_score_dropout", "attn_score_dropout", 0.0, float),
    Only(_DICT + "learn_positional_encodings", (False,), written=True),
    Only(_DICT + "pre_ln", (True,), False),
    Only("transf_decoder.pre_ln_final_layer_norm", (True,), written=True),
    Only("transf_decoder.encoder", (False, None), True),
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
    Unread("transf_encoder", _TRANSFORMER_ENCODER),
    ClassOf("head", "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier"),
    Classes(),
    Only("head.num_layers", (1,), written=True),
)
