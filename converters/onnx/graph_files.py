"""The files that an ONNX model has besides its weights: its graphs, and what runtimes read beside them.

onnxruntime-genai reads genai_config.json; onnx-asr and sherpa-onnx read, beside the graphs of a speech model,
a list of its tokens and keys of config.json.

Sources: onnx_asr/asr.py, onnx_asr/models/nemo.py of onnx-asr; sherpa-onnx/csrc/symbol-table.cc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from ...errors import UnsupportedConfig, UsageError
from ...extras import import_extra
from ...formats import sentencepiece
from ...formats.text import plain_json
from ...mappings.hf.fields import Value
from ...stores.files import SourceFile
from ..archive import speech_tokenizer
from ..base import Model
from ..hf.checkpoint import GENERATION_CONFIG, json_bytes
from .graph import accounting, architectures, decoder, encoder, genai, speech
from .graph.attention import FLAVORS
from .graph.builder import Weight

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"
DEFAULT_FLAVOR: Final = "std"
#: the same list, by the names that onnx-asr and sherpa-onnx look for
TOKEN_LISTS: Final = ("vocab.txt", "tokens.txt")
BLANK: Final = "<blk>"
#: keys of config.json that onnx-asr reads, and the fields that they repeat
_CONFIG_KEYS: Final = {
    "features_size": "feat_in",
    "subsampling_factor": "subsampling_factor",
    "max_tokens_per_step": "max_symbols",
    "max_sequence_length": "max_sequence_length",
}
#: what onnx-asr takes for keys that are not there
_CONFIG_DEFAULTS: Final = {
    "features_size": 80,
    "subsampling_factor": 8,
    "max_tokens_per_step": 10,
    "max_sequence_length": 1024,
}
#: white space that one of the two cuts a line at
_SPACE: Final = re.compile(r"[ \t\n\r\f\v]")


class GraphFiles:
    """The files that a model gets besides its weights, built from where these lie."""

    def __init__(self, model: Model, flavor: str | None, config: bytes = b"") -> None:
        flavor = flavor or DEFAULT_FLAVOR
        if flavor not in FLAVORS:
            raise UsageError(f"unknown flavor {flavor!r}", hint=f"one of {', '.join(FLAVORS)}")
        import_extra("onnx", "writing ONNX")
        #: the config.json that lies beside the files
        self.config = config
        self._model, self._flavor = model, flavor
        self._kind = architectures.find(model.table.architecture)
        if not self._kind.generates and flavor != DEFAULT_FLAVOR:
            raise UsageError(
                f"flavor {flavor!r} is for models that generate, {model.table.architecture} does not",
                hint="leave out --flavor",
            )

    @property
    def data(self) -> str:
        """The file for packed weights. onnx-asr fetches of a hub repository what is named after a graph."""
        return speech.data_file(self._kind) if isinstance(self._kind, architectures.Speech) else DATA

    @property
    def config_keys(self) -> Mapping[str, Value]:
        """What config.json should say besides what transformers reads."""
        is_speech = isinstance(self._kind, architectures.Speech)
        return config_keys(self._model.config) if is_speech else {}

    def notes(self) -> list[str]:
        """What a report should say of the files."""
        if not isinstance(self._kind, architectures.Speech):
            return []
        return notes(self._model, plain_json.loads_object(self.config, "config.json"))

    def build(self, weights: Mapping[str, Weight]) -> dict[str, bytes]:
        """The files by name, in the order to write them in: the graph comes last."""
        properties = {
            "nemoconv.format": "1",
            "nemoconv.flavor": self._flavor,
            "nemoconv.config": self.config.decode(),
        }
        config = self._model.config
        if isinstance(self._kind, architectures.Speech):
            return self._speech(self._kind, weights, properties)
        graph = self._graph(self._kind, weights, properties)
        if isinstance(self._kind, architectures.Encoder) or not self._kind.generates:
            return {MODEL: graph}
        settings = genai.genai_config(self._kind, config, self._flavor, self._model.inert, self._generation())
        return {genai.NAME: json_bytes(settings), MODEL: graph}

    def _graph(
        self,
        kind: architectures.Decoder | architectures.Encoder,
        weights: Mapping[str, Weight],
        properties: Mapping[str, str],
    ) -> bytes:
        """The graph, if it computes all that the config says."""
        reading = accounting.Reading(self._model.config)
        if isinstance(kind, architectures.Encoder):
            graph = encoder.build(kind, reading, weights, properties)
        else:
            graph = decoder.build(kind, reading, weights, self._flavor, properties)
        accounting.check(self._model.table, kind, reading)
        return graph

    def _speech(
        self, kind: architectures.Speech, weights: Mapping[str, Weight], properties: Mapping[str, str]
    ) -> dict[str, bytes]:
        texts = token_texts(kind, self._model)
        count = None if texts is None else len(texts)
        graphs = speech.build(kind, self._model.config, weights, properties, count)
        return {**({} if texts is None else token_lists(kind, texts)), **graphs}

    def _generation(self) -> Mapping[str, Value]:
        held = self._model.files.get(GENERATION_CONFIG)
        if held is None:
            return {}
        data = held if isinstance(held, bytes) else held.pread(held.size, 0)
        return plain_json.loads_object(data, GENERATION_CONFIG)


def config_keys(config: Mapping[str, Value]) -> dict[str, Value]:
    """The keys that onnx-asr wants to find in config.json, of a model config."""
    return {key: config[field] for key, field in _CONFIG_KEYS.items() if field in config}


def token_texts(kind: architectures.Speech, model: Model) -> list[str] | None:
    """The tokens by their ids, without a blank; None for a model without a tokenizer.

    Raises UnsupportedConfig for tokens that cannot be listed, or too many of them.
    """
    most = model.config["vocab_size"] - (kind.head != "aed")
    texts = _texts(model, most)
    if texts is None:
        return None
    # a blank is the number behind the last token; a vocabulary without one may be padded
    if len(texts) > most or (kind.head != "aed" and len(texts) < most):
        raise UnsupportedConfig(f"the tokenizer has {len(texts):,} tokens, and the model {most:,}")
    for number, text in enumerate(texts):
        if not text or _SPACE.search(text):
            raise UnsupportedConfig(
                f"token {number} is {text!r}: lists for onnx-asr and sherpa-onnx hold no white space"
            )
    return texts


def token_lists(kind: architectures.Speech, texts: Sequence[str]) -> dict[str, bytes]:
    """The list under both names: on each line a token, a space and its number; the blank is the last."""
    listed = [*texts] if kind.head == "aed" else [*texts, BLANK]
    lines = "".join(f"{text} {number}\n" for number, text in enumerate(listed))
    return dict.fromkeys(TOKEN_LISTS, lines.encode())


def notes(model: Model, stated: Mapping[str, Value]) -> list[str]:
    """What a report should say: ``stated`` is the config.json that lies beside the graphs."""
    found = []
    if not {speech_tokenizer.MODEL, speech_tokenizer.JSON} & model.files.keys():
        found.append(
            f"no tokenizer: {' and '.join(TOKEN_LISTS)}, which onnx-asr and sherpa-onnx read, are left out"
        )
    missing = [
        f"{key}={value}"
        for key, value in config_keys(model.config).items()
        if stated.get(key, _CONFIG_DEFAULTS[key]) != value
    ]
    if missing:
        found.append(f"config.json does not say {', '.join(missing)}, which onnx-asr needs")
    return found


def _texts(model: Model, most: int) -> list[str] | None:
    """The texts of all tokens by their ids; None for a model without a tokenizer."""
    held = {name: model.files.get(name) for name in (speech_tokenizer.MODEL, speech_tokenizer.JSON)}
    if (file := held[speech_tokenizer.MODEL]) is not None:
        return [piece.text for piece in sentencepiece.loads(_data(file), speech_tokenizer.MODEL).pieces]
    if (file := held[speech_tokenizer.JSON]) is not None:
        return _texts_of_json(_data(file), most)
    return None


def _texts_of_json(data: bytes, most: int) -> list[str]:
    """The first tokens of a tokenizer.json, its model's and those added to it: at most ``most``."""
    where = speech_tokenizer.JSON
    given = plain_json.loads_object(data, where, max_bytes=sentencepiece.MAX_BYTES)
    core, added = given.get("model"), given.get("added_tokens")
    vocab = core.get("vocab") if isinstance(core, dict) else None
    found: dict[Value, Value] = {}
    if isinstance(vocab, dict):
        found = {number: text for text, number in vocab.items()}
    elif isinstance(vocab, list):
        found = {number: entry[0] for number, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and type(token.get("id")) is int:
            found[token["id"]] = token.get("content")
    texts: list[str] = []
    while len(texts) < most and isinstance(text := found.get(len(texts)), str):
        texts.append(text)
    return texts


def _data(file: SourceFile | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.pread(file.size, 0)
