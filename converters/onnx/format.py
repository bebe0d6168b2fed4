"""ONNX as a format. The graph builders, and numpy with them, are imported when a graph is read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypedDict

from ..format import Format, Options
from ..options import CONFIG, MAX_SHARD_NBYTES, Option

if TYPE_CHECKING:
    from pathlib import Path

    from ...stores.output import OutputDirectory
    from ...tensors.layout import Layout
    from ..base import Checkpoint, Model
    from ..sink import Sink

FLAVOR: Final = Option(
    "flavor",
    "text",
    "std (any runtime, left padding; default) or genai (onnxruntime's own attention).",
    "genai",
    choices=("std", "genai"),
)
PACK: Final = Option("pack", "flag", "Weights in model.onnx.data, not in safetensors.")
DEQUANTIZE: Final = Option(
    "dequantize", "flag", "Accept weights that SRC holds only roughly (int4, int8).", when="read"
)


class OnnxOptions(TypedDict, total=False):
    """Keywords of reading and writing ONNX models."""

    dequantize: bool
    flavor: Literal["std", "genai"] | None
    pack: bool


class OnnxFormat(Format):
    name = "onnx"
    side = "hf"
    title = "ONNX model (model.onnx over safetensors or external data)"
    looks_for = "*.onnx"
    options = (CONFIG, DEQUANTIZE, FLAVOR, PACK, MAX_SHARD_NBYTES)

    def recognizes(self, path: Path) -> bool:
        from . import reader as onnx_reader

        return onnx_reader.recognizes(path)

    def open(self, path: Path, options: Options) -> Checkpoint:
        from .reader import OnnxCheckpoint

        return OnnxCheckpoint(path, config=CONFIG.of(options), approximate=DEQUANTIZE.of(options) is True)

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        from .writer import OnnxWriter

        size = MAX_SHARD_NBYTES.of(options)
        return OnnxWriter(output, model, size, flavor=FLAVOR.of(options), pack=PACK.of(options) is True)
