"""Writes ``.nemo`` archives of models that are not Megatron language models, as NeMo's ``save_to`` does:
a flat state dict in ``model_weights.ckpt``, ``model_config.yaml`` with the class, artifacts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import LayoutError
from ...formats.torch.checkpoint import StateDictItem
from ...mappings.families.speech import SpeechTable
from ...resharding.plan import Payload
from ...stores.copy import copy_into, size_of
from ...stores.files import SourceFile
from ...stores.output import OutputDirectory, OutputFile
from ...tensors.checksum import crc32
from ...tensors.dtypes import BY_NAME, DType
from ...tensors.layout import Layout
from ..base import Model, Request
from ..sink import Sink
from . import archive as nemo_archive
from . import speech_files
from .model import ArchiveModel

if TYPE_CHECKING:
    import numpy


class NemoModelWriter(Sink):
    """Config and artifacts first, then the weights with what only NeMo keeps in them."""

    side = "nemo"

    def __init__(self, output: OutputDirectory, model: Model, layout: Layout) -> None:
        if layout != Layout():
            raise LayoutError(
                f"a .nemo archive of a {model.table.nemo.model} has no parallel layout",
                hint="leave out --tp, --pp and --ep",
            )
        self._output = output
        self._small: dict[str, SourceFile | bytes]
        self._constants: dict[str, numpy.ndarray[Any, Any]] = {}
        self._copies: dict[str, str] = {}
        self._nulls: tuple[str, ...] = ()
        if isinstance(model, ArchiveModel):
            self._small = {nemo_archive.CONFIG: model.yaml, **model.artifacts}
            self._nulls = model.nulls
        else:
            assert isinstance(model.table, SpeechTable)
            yaml, artifacts, self._constants = speech_files.to_archive(model, model.table)
            self._small = {nemo_archive.CONFIG: yaml, **artifacts}
            self._copies = dict(model.table.copies)
        self._files: dict[str, OutputFile] = {}
        for name, source in sorted(self._small.items()):
            file = self._files[name] = output.file(name)
            file.size = size_of(source)

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        file = self._output.file(nemo_archive.WEIGHTS)
        entries: dict[str, tuple[DType, tuple[int, ...]] | str | None] = {
            name: (BY_NAME[str(array.dtype)], array.shape) for name, array in self._constants.items()
        }
        entries |= {request.name: (request.dtype, request.shape) for request in requests}
        entries |= self._copies
        entries |= dict.fromkeys(self._nulls)
        self._item = StateDictItem(entries)
        file.size = self._item.length
        self.tensor_count = len(entries) - len(self._nulls)
        names = [name for name, entry in entries.items() if isinstance(entry, tuple)]
        self._payloads = [
            Payload(name, file, offset, nbytes)
            for name, offset, nbytes in zip(names, self._item.payload_offsets, self._item.nbytes, strict=True)
        ]
        return self._payloads[len(self._constants) :]

    def finish(self) -> None:
        for payload, array in zip(self._payloads, self._constants.values(), strict=False):
            data = array.tobytes()
            payload.crc32 = crc32(data)
            payload.file.pwrite(data, payload.offset)
        for name, source in self._small.items():
            copy_into(self._files[name], source)
        weights = self._output.file(nemo_archive.WEIGHTS)
        for offset, data in self._item.frames([payload.crc32 or 0 for payload in self._payloads]):
            weights.pwrite(data, offset)
