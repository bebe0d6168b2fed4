"""Writing ONNX: model.onnx is a graph whose weights are places in the safetensors files.

One directory that transformers, onnxruntime and onnxruntime-genai all load; or, packed, the classic pair
model.onnx and model.onnx.data. The graph is built from the config and the places of the weights before
anything is written, so what has no graph fails on headers alone.

Runtimes read more files beside the graphs: onnxruntime-genai genai_config.json; onnx-asr and sherpa-onnx a
list of a speech model's tokens, and keys of config.json.

Sources: onnxruntime-genai's "Config reference", its src/config.cpp and, for the kinds,
src/models/model_type.h; onnx_asr/asr.py, onnx_asr/models/nemo.py of onnx-asr;
sherpa-onnx/csrc/symbol-table.cc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ...errors import UnsupportedConfig, UsageError
from ...extras import import_extra
from ...formats import sentencepiece
from ...formats.text import plain_json
from ...mappings.hf.fields import Value
from ...resharding.plan import Payload
from ...stores.files import SourceFile
from ...stores.output import OutputDirectory
from ..archive import speech_tokenizer
from ..base import Model, Request, TensorSpec
from ..hf.checkpoint import GENERATION_CONFIG, HFWriter, json_bytes
from .graph import speech, transformer
from .graph.architectures import Decoder, Encoder, Reading, SpeechModel, check_read, find
from .graph.attention import FLAVORS
from .graph.builder import Weight

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"
GENAI_CONFIG: Final = "genai_config.json"
DEFAULT_FLAVOR: Final = "std"
#: where payloads of model.onnx.data start: pages, so that a reader may map them one by one
_ALIGNMENT: Final = 4096
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
        self._kind = find(model.table.architecture)
        if not self._kind.generates and flavor != DEFAULT_FLAVOR:
            raise UsageError(
                f"flavor {flavor!r} is for models that generate, {model.table.architecture} does not",
                hint="leave out --flavor",
            )

    @property
    def data(self) -> str:
        """The file for packed weights. onnx-asr fetches of a hub repository what is named after a graph."""
        return speech.data_file(self._kind) if isinstance(self._kind, SpeechModel) else DATA

    @property
    def config_keys(self) -> Mapping[str, Value]:
        """What config.json should say besides what transformers reads."""
        is_speech = isinstance(self._kind, SpeechModel)
        return config_keys(self._model.config) if is_speech else {}

    def notes(self) -> list[str]:
        """What a report should say of the files."""
        if not isinstance(self._kind, SpeechModel):
            return []
        return notes(self._model, plain_json.loads_object(self.config, "config.json"))

    def build(self, weights: Mapping[str, Weight]) -> dict[str, bytes]:
        """The files by name, in the order to write them in: the graph comes last."""
        properties = {
            "nemoconv.format": "1",
            "nemoconv.flavor": self._flavor,
            "nemoconv.config": self.config.decode(),
        }
        if isinstance(self._kind, SpeechModel):
            return self._speech(self._kind, weights, properties)
        graph = self._graph(self._kind, weights, properties)
        if isinstance(self._kind, Encoder) or not self._kind.generates:
            return {MODEL: graph}
        settings = genai_config(
            self._kind, self._model.config, self._flavor, self._model.inert, self._generation()
        )
        return {GENAI_CONFIG: json_bytes(settings), MODEL: graph}

    def _graph(
        self,
        kind: Decoder | Encoder,
        weights: Mapping[str, Weight],
        properties: Mapping[str, str],
    ) -> bytes:
        """The graph, if it computes all that the config says."""
        reading = Reading(self._model.config)
        graph = transformer.build(kind, reading, weights, self._flavor, properties)
        check_read(self._model.table, kind, reading)
        return graph

    def _speech(
        self, kind: SpeechModel, weights: Mapping[str, Weight], properties: Mapping[str, str]
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


class OnnxWriter(HFWriter):
    """What :class:`HFWriter` writes, then genai_config.json (of a model that generates) and model.onnx.

    With ``pack`` the weights go into model.onnx.data and there are no safetensors.
    """

    def __init__(
        self, output: OutputDirectory, model: Model, max_shard_nbytes: int, *, flavor: str | None, pack: bool
    ) -> None:
        super().__init__(output, model, max_shard_nbytes)
        self._graph, self._packs = GraphFiles(model, flavor), pack
        self._config = dict(sorted({**self._config, **self._graph.config_keys}.items()))
        self._graph.config = json_bytes(self._config)
        self._graph_files: dict[str, bytes] = {}

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        payloads = self._pack(requests) if self._packs else super().reserve(requests)
        self._graph_files = self._graph.build(
            {
                request.name: Weight(
                    payload.file.name, payload.offset, payload.nbytes, request.dtype, request.shape
                )
                for request, payload in zip(requests, payloads, strict=True)
            }
        )
        return payloads

    def _pack(self, requests: Sequence[Request]) -> Sequence[Payload]:
        file = self._output.file(self._graph.data)
        payloads = []
        for request in requests:
            nbytes = TensorSpec(request.name, request.dtype, request.shape).nbytes
            offset = -(-file.size // _ALIGNMENT) * _ALIGNMENT
            payloads.append(Payload(request.name, file, offset, nbytes))
            file.size = offset + nbytes
        self.tensor_count = len(payloads)
        return payloads

    def notes(self) -> list[str]:
        return self._graph.notes()

    def finish(self) -> None:
        kept = {name: file for name, file in self._model.files.items() if name not in self._graph_files}
        self._model = replace(self._model, files=kept)  # NeMo has a vocab.txt of another kind
        super().finish()
        for name, data in self._graph_files.items():
            self._output.write(name, data)


def genai_config(
    decoder: Decoder,
    config: Mapping[str, Value],
    flavor: str,
    tokens: Mapping[str, Value],
    generation: Mapping[str, Value],
) -> dict[str, Value]:
    """The content of the file. ``tokens`` and ``generation`` are keys of config.json and of
    generation_config.json; the latter win, as they do in transformers."""
    heads = decoder.projections.heads(config)
    ends = _first_said(generation, tokens, "eos_token_id")
    starts, pads = (_first_said(generation, tokens, f"{name}_token_id") for name in ("bos", "pad"))
    if pads is None:
        pads = ends[0] if isinstance(ends, list) and ends else ends
    special = {"bos_token_id": starts, "eos_token_id": ends, "pad_token_id": pads}
    return {
        "model": {
            **{key: value for key, value in special.items() if value is not None},
            "context_length": config["seq_length"],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": heads.head_dim,
                "hidden_size": config["hidden_size"],
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config["num_attention_heads"],
                "num_hidden_layers": config["num_layers"],
                "num_key_value_heads": heads.groups,
            },
            "type": decoder.genai,
            "vocab_size": config["vocab_size"],
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)),
            "max_length": config["seq_length"],
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": FLAVORS[flavor].shares_cache,
            "repetition_penalty": float(generation.get("repetition_penalty") or 1.0),
            "temperature": float(generation.get("temperature") or 1.0),
            "top_k": int(generation.get("top_k") or 50),
            "top_p": float(generation.get("top_p") or 1.0),
        },
    }


def _first_said(generation: Mapping[str, Value], tokens: Mapping[str, Value], key: str) -> Value:
    found = generation.get(key)
    return tokens.get(key) if found is None else found


def config_keys(config: Mapping[str, Value]) -> dict[str, Value]:
    """The keys that onnx-asr wants to find in config.json, of a model config."""
    return {key: config[field] for key, field in _CONFIG_KEYS.items() if field in config}


def token_texts(kind: SpeechModel, model: Model) -> list[str] | None:
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


def token_lists(kind: SpeechModel, texts: Sequence[str]) -> dict[str, bytes]:
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
