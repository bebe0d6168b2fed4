"""Writes ``.nemo`` archives as NeMo 2.4, the last with Megatron GPT models, does: megatron-core's names in
a torch_dist checkpoint, which NeMo restores at any parallel layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ...formats.text import plain_yaml
from ...formats.torch import items as torch_items
from ...resharding.plan import Payload
from ...stores.output import OutputDirectory
from ...tensors.layout import Layout
from ..archive import archive as nemo_archive
from ..base import Model, Request
from ..nemo2.writer import NeMo2Sink
from . import build as nemo1_build

if TYPE_CHECKING:
    from ..bind import Bound

_FOLDER: Final = "model_weights"


class NeMo1Sink(NeMo2Sink):
    """What :class:`NeMo2Sink` writes, with a ``model_config.yaml`` instead of a context."""

    prefix = "model."

    def __init__(self, output: OutputDirectory, model: Model, layout: Layout) -> None:
        super().__init__(output, model, layout)
        section, self._members, self._notes = nemo1_build.build_tokenizer(model.files)
        self._yaml = nemo1_build.build_yaml(model.table, model.config, layout, model.sizes["vocab"], section)

    def begin(self, bound: Bound) -> None:
        bound.leave_out_idle()

    def notes(self) -> Sequence[str]:
        return self._notes

    def _at(self, name: str) -> str:
        return f"{_FOLDER}/{name}"

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        """The small members come first, so that who reads the archive as a stream meets them first."""
        small = {nemo_archive.CONFIG: plain_yaml.dumps(self._yaml), **self._members}
        for name, data in sorted(small.items()):
            file = self._output.file(name)
            file.size = len(data)
            file.pwrite_later(0, data)
        return super().reserve(requests)

    def _write_context(self) -> None:
        self._output.write(self._at("common.pt"), torch_items.object_item({}))
