"""Hugging Face's PEFT directories as a format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..format import Format, Options

if TYPE_CHECKING:
    from pathlib import Path

    from ...stores.output import OutputDirectory
    from ...tensors.layout import Layout
    from ..base import Checkpoint, Model
    from ..sink import Sink

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_PICKLED: Final = "adapter_model.bin"


class PeftFormat(Format):
    name = "peft"
    side = "hf"
    title = "Hugging Face PEFT directory of LoRA adapters (adapter_config.json, adapter_model.safetensors)"
    aliases = ("lora",)
    looks_for = f"{_CONFIG} beside {_WEIGHTS}"

    def recognizes(self, path: Path) -> bool:
        return (path / _CONFIG).is_file() and any((path / name).is_file() for name in (_WEIGHTS, _PICKLED))

    def open(self, path: Path, options: Options) -> Checkpoint:
        from .peft import PeftCheckpoint

        return PeftCheckpoint(path)

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        from .peft import PeftWriter

        return PeftWriter(output, model)
