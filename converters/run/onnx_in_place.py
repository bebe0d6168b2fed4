"""Add an ONNX graph to a Hugging Face directory: no weight is copied, the graph points at them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UnsafeCheckpoint, UnsupportedFormat
from ...resharding.plan import Payload
from ...stores.files import SourceFile
from ...stores.output import OutputDirectory, OutputFile, add_files, check_absent
from ...tensors.byte_source import ByteSource
from ...tensors.layout import Layout
from .. import source_manifest
from ..base import Model, Request
from ..bind import Bound
from ..format import Options
from ..hf.checkpoint import json_bytes
from ..onnx.format import FLAVOR, OnnxFormat
from ..onnx.graph.builder import Weight
from ..onnx.writer import GraphFiles
from ..registry import recognize
from ..sink import Sink
from .plan import Report, Wish, prepare


class _Existing(Sink):
    """A plan's targets that are there already: where the checkpoint holds its tensors."""

    side = "hf"

    def __init__(self, model: Model, flavor: str | None) -> None:
        self._model, self._flavor = model, flavor
        self.files: Mapping[str, bytes] = {}
        self._notes: Sequence[str] = ()

    def notes(self) -> Sequence[str]:
        return self._notes

    def begin(self, bound: Bound) -> None:
        self._bound = bound

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        checkpoint, payloads, weights = self._bound.checkpoint, [], {}
        for request in requests:
            tensor = checkpoint.stored(self._bound.stored_name(request.name))
            (extent,) = tensor.extents
            check_plain(checkpoint.path, extent.file)
            file = OutputFile(extent.file.path, extent.file.name)
            payloads.append(Payload(request.name, file, extent.offset, tensor.nbytes))
            weights[request.name] = Weight(
                extent.file.name, extent.offset, tensor.nbytes, tensor.dtype, tensor.shape
            )
        config = json_bytes(dict(checkpoint.config))
        graph = GraphFiles(self._model, self._flavor, config)
        self.files, self._notes = graph.build(weights), graph.notes()
        self.tensor_count = len(weights)
        return payloads

    def finish(self) -> None:
        """Nothing to do: the weights lie where they are."""


class _InPlace(OnnxFormat):
    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        return _Existing(model, FLAVOR.of(options))


def check_plain(directory: Path, file: ByteSource) -> None:
    """Raise unless onnxruntime and onnx would follow a graph's reference to ``file``."""
    advice = f"write the model out instead: nemoconv hf2onnx {directory} OUT"
    if type(file) is not SourceFile:
        raise UnsupportedFormat(f"{file.path}: holds weights that are decoded when read", hint=advice)
    place = directory / file.name
    if place.is_symlink():
        raise UnsafeCheckpoint(
            f"{place}: is a link, as in the hub's cache, and ONNX readers follow none", hint=advice
        )
    if os.stat(place).st_nlink > 1:
        raise UnsafeCheckpoint(f"{place}: is hard-linked, and ONNX readers refuse that", hint=advice)


def add_graph(
    directory: str | Path,
    *,
    flavor: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_ignored: Sequence[str] = (),
    ignore_manifest: bool = False,
) -> Report:
    """Add model.onnx and genai_config.json to a Hugging Face directory of regular files.

    Every check of a conversion is made. When that fails, the directory is what it was before.
    Raises the errors of :mod:`nemoconv.errors`.
    """
    started = time.perf_counter()
    place = Path(directory)
    with source_manifest.opened(recognize(place), place, {}, ignore=ignore_manifest) as (source, told):
        if source.format != "hf":
            raise UnsupportedFormat(
                f"{place}: a graph is added to Hugging Face directories only, this is {source.format}",
                hint=f"nemoconv convert {place} OUT --to onnx",
            )
        wish = Wish(options={FLAVOR.name: flavor}, allow_ignored=tuple(allow_ignored))
        conversion = prepare(source, OutputDirectory(place), _InPlace(), wish)
        told.compare(conversion)
        writer = conversion.writer
        assert isinstance(writer, _Existing)
        check_absent(place, writer.files, overwrite=overwrite)
        report = replace(
            conversion.report,
            moves=0,
            read_nbytes=0,
            write_nbytes=sum(map(len, writer.files.values())),
            files=len(writer.files),
            notes=[*conversion.report.notes, "the weights stay where they are"],
        )
        if dry_run:
            return report
        for file in conversion.plan.sources():
            file.check_unchanged()
        add_files(place, writer.files, overwrite=overwrite)
    return replace(report, seconds=time.perf_counter() - started)
