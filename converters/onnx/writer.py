"""Writing ONNX: model.onnx is a graph whose weights are places in the safetensors files.

One directory that transformers, onnxruntime and onnxruntime-genai all load; or, packed, the classic pair
model.onnx and model.onnx.data. The graph is built from the config and the places of the weights before
anything is written, so what has no graph fails on headers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ...resharding.plan import Payload
from ...stores.output import OutputDirectory
from ..base import Model, Request, TensorSpec
from ..hf.checkpoint import HFWriter, json_bytes
from .graph.builder import Weight
from .graph_files import GraphFiles

#: where payloads of model.onnx.data start: pages, so that a reader may map them one by one
_ALIGNMENT: Final = 4096


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
