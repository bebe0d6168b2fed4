"""Tensors alone as a format: safetensors under the source's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .format import Format, Options
from .options import MAX_SHARD_NBYTES

if TYPE_CHECKING:
    from pathlib import Path

    from ..stores.output import OutputDirectory
    from ..tensors.layout import Layout
    from .base import Checkpoint, Model
    from .sink import Sink


class SafetensorsFormat(Format):
    name = "safetensors"
    side = "hf"
    title = "tensors alone, under the source's own names (safetensors)"
    looks_for = "a .safetensors file"
    plain = True
    options = (MAX_SHARD_NBYTES,)

    def recognizes(self, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".safetensors"
        told = any((path / name).exists() for name in ("nemoconv_manifest.json", "model_config.yaml"))
        weights = ("model.safetensors", "model.safetensors.index.json")
        written = told and any((path / name).exists() for name in weights)
        return written and not (path / "config.json").exists()

    def open(self, path: Path, options: Options) -> Checkpoint:
        from .archive.model import NemoTensors
        from .run.safetensors import PlainCheckpoint

        return NemoTensors(path) if (path / "model_config.yaml").exists() else PlainCheckpoint(path)

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        from .hf.checkpoint import ShardWriter

        return ShardWriter(output, MAX_SHARD_NBYTES.of(options))
