"""Hugging Face's PEFT directories: ``adapter_config.json`` and ``adapter_model.safetensors``.

They are written, and read again where a manifest tells what model their adapters belong to: what PEFT itself
keeps says no more than its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import UnsupportedArchitecture, UnsupportedFormat
from ...formats.safetensors import emit_header, read_header
from ...mappings import load_table
from ...mappings.hf.fields import Value
from ...mappings.lora import adapter_table, is_adapter
from ...resharding.plan import Payload
from ...stores.copy import copy_all
from ...stores.files import SourceDir, SourceFile
from ...stores.output import OutputDirectory
from .. import manifest
from ..base import HeldTensors, Model, Request
from ..nemo1.adapters import ADAPTER_CONFIG
from ..sink import Sink

WEIGHTS: Final = "adapter_model.safetensors"
_PICKLED: Final = "adapter_model.bin"


class PeftCheckpoint(HeldTensors):
    """An open PEFT directory."""

    format = "peft"
    side = "hf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = SourceDir(path)
        if not self._folder.exists(WEIGHTS) and self._folder.exists(_PICKLED):
            raise UnsupportedFormat(
                f"{path / _PICKLED}: the adapters are a pickle, which can run code when loaded",
                hint="load them with PEFT, on a machine you can spare, and save them as safetensors",
            )
        self._tensors = read_header(self._folder.file(WEIGHTS))[0]
        self._manifest: Mapping[str, Any] | None = manifest.read(self._folder)

    @property
    def config(self) -> Mapping[str, Value]:
        return {}

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        if self._manifest is None:
            raise UnsupportedArchitecture(
                f"{self.path}: adapters of PEFT do not say what model they belong to",
                hint="adapters are written as PEFT directories here, and read only to compare them",
            )
        table = load_table(str(self._manifest["architecture"]))
        adapters = adapter_table(table, set(self._tensors))
        files: dict[str, SourceFile | bytes] = {ADAPTER_CONFIG: self._folder.file(ADAPTER_CONFIG)}
        return Model(adapters, dict(self._manifest["model_config"]), {}, files)

    def describe(self) -> dict[str, Value]:
        files = {file.name: file.size for file in self._folder.opened()}
        return {"writer": "PEFT", "files": files}

    def close(self) -> None:
        self._folder.close()


class PeftWriter(Sink):
    """The tensors in one file, and adapter_config.json."""

    side = "hf"

    def __init__(self, output: OutputDirectory, model: Model) -> None:
        self._output, self._files = output, model.files
        if not is_adapter(model.table):
            raise UnsupportedFormat(
                f"a whole {model.table.architecture!r} model is no set of adapters", hint="convert it --to hf"
            )

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        file = self._output.file(WEIGHTS)
        self._header, offsets = emit_header([(r.name, r.dtype, r.shape) for r in requests])
        payloads = []
        file.size = len(self._header)
        for request, offset in zip(requests, offsets, strict=True):
            nbytes = request.dtype.itemsize
            for length in request.shape:
                nbytes *= length
            payloads.append(Payload(request.name, file, offset, nbytes))
            file.size = max(file.size, offset + nbytes)
        self.tensor_count = len(payloads)
        return payloads

    def finish(self) -> None:
        self._output.file(WEIGHTS).pwrite(self._header, 0)
        copy_all(self._output, self._files)
