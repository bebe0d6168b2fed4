"""Any checkpoint's tensors as safetensors, under the names that they have, whatever model they are.

No mapping table takes part, so nothing is renamed, cut or joined; what a file says of the model is left
behind. It is how weights get out of a graph or an architecture that has no table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ...errors import LayoutError, UnsupportedArchitecture, UnsupportedError
from ...formats.safetensors import read_header
from ...mappings.hf.fields import Value
from ...resharding.plan import Job, Plan, Target
from ...stores.copy import copy_all
from ...stores.files import SourceDir, SourceFile
from ...stores.output import OutputDirectory
from ...tensors.layout import Layout
from ...tensors.stored import contiguous_strides
from ...version import __version__
from ..abilities import Accompanied, plain_tensors
from ..base import Checkpoint, HeldTensors, Model, Request
from ..hf import beside
from ..hf.checkpoint import ShardWriter, left_weights, read_shards
from ..options import MAX_SHARD_NBYTES
from .plan import Conversion, Report, Wish, make_limits, resident_nbytes

#: the one name that a safetensors header keeps for itself
_RESERVED: Final = "__metadata__"


class PlainCheckpoint(HeldTensors):
    """A .safetensors file, or a directory that this module wrote."""

    format = "safetensors"
    side = "hf"
    has_model = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = SourceDir(path.parent if path.is_file() else path)
        if path.is_file():
            self._tensors = read_header(self._folder.file(path.name))[0]
        else:
            self._tensors = read_shards(self._folder)

    def notes(self) -> Sequence[str]:
        return beside.left_note(*left_weights(self._folder)) if self.path.is_dir() else ()

    @property
    def config(self) -> Mapping[str, Value]:
        return {}

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        raise UnsupportedArchitecture(
            f"{self.path}: holds tensors only, and nothing says what model they are",
            hint="a Hugging Face directory has a config.json beside them",
        )

    def describe(self) -> dict[str, Value]:
        return {"writer": "(not recorded)", "files": {f.name: f.size for f in self._folder.opened()}}

    def open_folder(self) -> SourceDir | None:
        return SourceDir(self.path) if self.path.is_dir() else None

    def close(self) -> None:
        self._folder.close()


class PlainWriter(ShardWriter):
    """Shards, and the files that go along."""

    def __init__(
        self, output: OutputDirectory, max_shard_nbytes: int, files: Mapping[str, SourceFile | bytes]
    ) -> None:
        super().__init__(output, max_shard_nbytes)
        self._files = files

    def finish(self) -> None:
        copy_all(self._output, self._files)
        super().finish()


def prepare_plain(source: Checkpoint, output: OutputDirectory, wish: Wish) -> Conversion:
    """Plan to write every tensor of ``source`` as it is, or cast to ``wish.dtype``.

    Raises UnsupportedError, naming what is not a tensor that safetensors has, LayoutError for a layout.
    """
    started = time.perf_counter()
    if wish.layout != Layout():
        raise LayoutError("safetensors files have no parallel layout", hint="leave out --tp, --pp and --ep")
    tensors = plain_tensors(source)
    if _RESERVED in tensors:
        raise UnsupportedError(f"{source.path}: a tensor is called {_RESERVED!r}, which safetensors reserves")
    files = source.plain_files() if isinstance(source, Accompanied) else {}
    writer = PlainWriter(output, MAX_SHARD_NBYTES.of(wish.options), files)
    casts = {
        name: wish.dtype if wish.dtype and tensor.dtype.is_floating_point else tensor.dtype
        for name, tensor in tensors.items()
    }
    whole = {name: (0,) * len(tensor.shape) for name, tensor in tensors.items()}
    payloads = writer.reserve(
        [Request(name, casts[name], t.shape, whole[name], t.shape) for name, t in tensors.items()]
    )
    plan = Plan()
    for (name, tensor), payload in zip(tensors.items(), payloads, strict=True):
        strides = contiguous_strides(tensor.shape, casts[name].itemsize)
        target = Target(payload, 0, whole[name], tensor.shape, strides)
        plan.jobs.append(Job(name, tensor.shape, tensor.dtype, casts[name], tensor.extents, (target,)))
    plan.check()
    limits, plan_nbytes = make_limits(plan, wish)
    report = Report(
        source=str(source.path),
        source_format=source.format,
        target=str(output.target),
        target_format="safetensors",
        architecture="any architecture",
        layout=str(wish.layout),
        parameters=sum(t.nbytes // t.dtype.itemsize for t in tensors.values()),
        tensors_in=len(tensors),
        tensors_out=writer.tensor_count,
        moves=plan.moves,
        read_nbytes=plan.read_nbytes,
        write_nbytes=plan.write_nbytes,
        peak_memory_nbytes=limits.nbytes + plan_nbytes + resident_nbytes(),
        free_disk_nbytes=output.free_bytes(),
        files=len({payload.file.name for payload in payloads}),
        plan_seconds=time.perf_counter() - started,
        inert_keys=[],
        ignored_keys=[],
        notes=[
            "tensors keep the source's names; config, tokenizer and graph are not written"
            if not files
            else "tensors keep the source's names; the source's other files lie beside them",
            *source.notes(),
            *(f"{count:,} {what} not converted" for what, count in source.skipped().items()),
        ],
    )
    header: dict[str, Value] = {
        "written_by": f"nemoconv {__version__}",
        "format": "safetensors",
        "source_format": source.format,
        "dtype": wish.dtype.name if wish.dtype else None,
        "layout": asdict(wish.layout),
        "model_config": {},
        "inert_config": {},
    }
    return Conversion(source, output, writer, plan, list(payloads), limits, report, header)
