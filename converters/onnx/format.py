"""ONNX as a format. The graph builders, and numpy with them, are imported when a graph is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...stores.output import OutputDirectory
from ..base import Checkpoint, Converter, Model, WriteOptions, Writer


class OnnxConverter(Converter):
    name = "onnx"
    side = "hf"
    title = "ONNX model (model.onnx over safetensors or external data)"
    looks_for = "*.onnx"
    options = frozenset({"flavor", "pack"})

    def recognizes(self, path: Path) -> bool:
        from . import reader as onnx_reader

        return onnx_reader.recognizes(path)

    def open(self, path: Path, *, config: Path | None = None) -> Checkpoint:
        from . import reader as onnx_reader

        return onnx_reader.open_onnx(path, config=config)

    def create(
        self, output: OutputDirectory, model: Model, options: WriteOptions, sizes: Mapping[str, int]
    ) -> Writer:
        from .writer import OnnxWriter

        return OnnxWriter(output, model, options)
