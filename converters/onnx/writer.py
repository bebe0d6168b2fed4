"""Writing ONNX: model.onnx is a graph whose weights are places in the safetensors files.

One directory that transformers, onnxruntime and onnxruntime-genai all load; or, packed, the classic pair
model.onnx and model.onnx.data. The graph is built from the config and the places of the weights before
anything is written, so what has no graph fails on headers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ...errors import UsageError
from ...extras import import_extra
from ...formats.text import plain_json
from ...mappings.hf.fields import Value
from ...resharding.plan import Payload
from ...stores.output import OutputDirectory
from ..base import Model, Request, TensorSpec
from ..hf.checkpoint import GENERATION_CONFIG, HFWriter, json_bytes
from . import speech_files as onnx_speech
from .graph import accounting, architectures, decoder, encoder, genai, speech
from .graph.attention import FLAVORS
from .graph.builder import Weight

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"
DEFAULT_FLAVOR: Final = "std"
#: where payloads of model.onnx.data start: pages, so that a reader may map them one by one
_ALIGNMENT: Final = 4096


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
        return onnx_speech.config_keys(self._model.config) if is_speech else {}

    def notes(self) -> list[str]:
        """What a report should say of the files."""
        if not isinstance(self._kind, architectures.Speech):
            return []
        return onnx_speech.notes(self._model, plain_json.loads_object(self.config, "config.json"))

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
        texts = onnx_speech.token_texts(kind, self._model)
        count = None if texts is None else len(texts)
        graphs = speech.build(kind, self._model.config, weights, properties, count)
        return {**({} if texts is None else onnx_speech.token_lists(kind, texts)), **graphs}

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
