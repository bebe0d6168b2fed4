"""A format that keeps every tensor in a file of its own, and an architecture that is a Llama by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoconv.plugin import (
    DTYPES,
    CorruptCheckpoint,
    Extent,
    Format,
    HeldTensors,
    Layout,
    Model,
    Nemo1,
    Option,
    Options,
    OutputDirectory,
    Payload,
    Request,
    Sink,
    SourceDir,
    StoredTensor,
    TensorSpec,
    contiguous_strides,
    described,
    hf_config,
    parse_json,
    read_config,
    table_for,
)

LLAMA = described("llama")
assert LLAMA is not None
PELICAN = replace(
    LLAMA,
    model_types=("pelican",),
    hf_class="PelicanForCausalLM",
    nemo2=replace(LLAMA.nemo2, module="pelican.nemo", model="PelicanModel"),
    nemo1=Nemo1(read_as="llama"),
)


class RawCheckpoint(HeldTensors):
    format = "raw"
    side = "hf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = SourceDir(path)
        index = parse_json(self._directory.read("raw.json"), str(path / "raw.json"))
        self._config: dict[str, Any] = index["config"]  # type: ignore[assignment]
        self._tensors: dict[str, StoredTensor] = {}
        for name, (dtype, shape, file_name) in index["tensors"].items():  # type: ignore[attr-defined]
            kind, size = DTYPES[dtype], tuple(shape)
            file = self._directory.file(file_name)
            extent = Extent(file, 0, (0,) * len(size), size, contiguous_strides(size, kind.itemsize))
            self._tensors[name] = StoredTensor(name, kind, size, (extent,))
            if file.size != self._tensors[name].nbytes:
                raise CorruptCheckpoint(f"{file.path}: has {file.size} bytes")

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        table = table_for(self._config, str(self.path))
        return Model(table, read_config(table.fields, self._config, allow_ignored)[0])

    def describe(self) -> dict[str, Any]:
        return {"writer": "example", "files": {f.name: f.size for f in self._directory.opened()}}

    def close(self) -> None:
        self._directory.close()


class RawSink(Sink):
    side = "hf"

    def __init__(self, output: OutputDirectory, model: Model, suffix: str) -> None:
        self._output, self._config, self._suffix = output, hf_config(model), suffix
        self._tensors: dict[str, tuple[str, list[int], str]] = {}

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        payloads = []
        for number, request in enumerate(requests):
            file = self._output.file(f"{number}.{self._suffix}")
            file.size = TensorSpec(request.name, request.dtype, request.shape).nbytes
            payloads.append(Payload(request.name, file, 0, file.size))
            self._tensors[request.name] = (request.dtype.name, list(request.shape), file.name)
        self.tensor_count = len(payloads)
        return payloads

    def finish(self) -> None:
        self._output.write(
            "raw.json", json.dumps({"config": self._config, "tensors": self._tensors}).encode()
        )


SUFFIX = Option("suffix", "text", "What the files of tensors are called after the dot.", "dat", default="bin")


class RawFormat(Format):
    name = "raw"
    side = "hf"
    title = "one file per tensor"
    looks_for = "raw.json"
    options = (SUFFIX,)

    def recognizes(self, path: Path) -> bool:
        return (path / "raw.json").exists()

    def open(self, path: Path, options: Options) -> RawCheckpoint:
        return RawCheckpoint(path)

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        return RawSink(output, model, SUFFIX.of(options))
