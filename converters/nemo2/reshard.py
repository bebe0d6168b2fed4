"""A NeMo 2 directory in another layout: the same checkpoint, its tensors cut and filed anew.

Names, stacking, ``_extra_state`` objects, ``common.pt`` and ``context/`` are the source's, byte for byte,
but for what says or follows from the layout: the parallel sizes, and the padded vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Final

from ...errors import LayoutError, NemoconvError, some
from ...formats.text.fiddle import Node
from ...formats.torch import common as torch_common
from ...formats.torch import dist_writer as torch_dist_writer
from ...formats.torch.dist import DistObject, DistTensor
from ...resharding.plan import Payload
from ...stores.files import Folder, SourceFile
from ...stores.output import OutputDirectory, OutputFile
from ...tensors.layout import Layout
from .. import manifest
from ..base import Checkpoint, Model, Request
from ..sink import Sink
from ..torch_dist import names as nemo2_names
from ..torch_dist.names import PREFIX
from . import layout as nemo2_layout
from . import optimizer as nemo2_optimizer
from .checkpoint import NeMo2Checkpoint
from .context import LANGUAGE
from .optimizer import OptimizerState
from .writer import NeMo2Sink, half_of

if TYPE_CHECKING:
    from ..bind import Bound

_EXTRA_STATE = re.compile(r"(.+)\._extra_state/shard_(\d+(?:\.\d+)*)_(\d+(?:\.\d+)*)")
_WHOLE = re.compile(r".+/shard_0_1")
_LAYER = re.compile(r"layers\.(\d+)\.")
_EXPERT = re.compile(r"local_experts\.(\d+)\.")
#: written anew
_WRITTEN: Final = (".metadata", "metadata.json", manifest.NAME)
_COPY_NBYTES = 8 << 20


class NeMo2Resharder(NeMo2Sink):
    """Writes what ``source`` holds, cut by another layout."""

    keeps_everything = True

    def __init__(
        self,
        output: OutputDirectory,
        source: NeMo2Checkpoint,
        model: Model,
        layout: Layout,
        *,
        drop_optimizer: bool = False,
    ) -> None:
        super().__init__(output, model, layout)
        self._source = source
        self._flattened: dict[str, tuple[int, ...]] = {}
        self._carried: list[tuple[DistObject, OutputFile, int]] = []
        self._notes: list[str] = []
        self._states: Mapping[str, OptimizerState] = {}
        if drop_optimizer:
            self._note_dropped()
        else:
            self._states = source.companions()
            self._note_states()

    def _note_dropped(self) -> None:
        keys = [*self._source.metadata.tensors, *self._source.metadata.objects]
        count = sum(key.startswith(nemo2_optimizer.PREFIXES) for key in keys)
        if count:
            self._notes.append(f"{count:,} keys of optimizer state left out, as --drop-optimizer asks")

    def _note_states(self) -> None:
        if self._states:
            count = sum(state.stored_count for state in self._states.values())
            kinds = sorted({kind.rpartition(".")[2] for kind in self._states})
            self._notes.append(f"optimizer state goes along: {count:,} tensors ({', '.join(kinds)})")

    def begin(self, bound: Bound) -> None:
        self._bound = bound
        name = self._at("common.pt")
        if not self._source.directory.exists(name):
            return
        data = self._source.directory.read(name)
        try:
            common = torch_common.read_object(data, where=str(self._source.path / name))
        except NemoconvError as error:
            self._notes.append(f"carried along unread: {error.message}")
            return
        if isinstance(common, dict) and "args" in common:
            self._notes.append(
                "common.pt keeps the options of the run (args), which state the old layout; Megatron-LM "
                "takes parallel sizes from its command line"
            )

    def notes(self) -> Sequence[str]:
        return self._notes

    def _at(self, name: str) -> str:
        return f"{self._source.weights}/{name}" if self._source.weights else name

    # places

    def _reserve(self, request: Request) -> Payload:
        return self.add(request, *self._source.place(self._bound.stored_name(request.name)))

    def place_of(self, key: str, lead: tuple[int, ...], index: tuple[int, ...]) -> nemo2_names.Place:
        return self._source.place_of(key, lead, index)

    def add(self, request: Request, key: str, lead: tuple[int, ...], index: tuple[int, ...]) -> Payload:
        """A place for a box of one layer (and expert) of the stored tensor ``key``."""
        if key in self._source.halved:
            request, key = half_of(request, key)
        whole, start = (*lead, *request.shape), (*index, *request.start)
        box = (*(1,) * len(index), *request.box)
        return self._add(key, request.dtype, whole, start, box, request.rank)

    def add_flattened(
        self, request: Request, key: str, lead: tuple[int, ...], index: tuple[int, ...]
    ) -> Payload:
        """The same where the format keeps every rank's piece as a row of its own."""
        whole, start = (*lead, *request.shape), (*index, *request.start)
        box = (*(1,) * len(index), *request.box)
        pairs = list(zip(whole, start, box, strict=True))
        if any(n % piece or first % piece for n, first, piece in pairs):
            raise LayoutError(f"{key}: its pieces are not of one size, which flattened state cannot express")
        self._flattened[key] = whole
        grid, cell = tuple(n // piece for n, _, piece in pairs), tuple(at // piece for _, at, piece in pairs)
        size = prod(box)
        flat = (*(1,) * len(cell), size)
        return self._add(key, request.dtype, (*grid, size), (*cell, 0), flat, request.rank)

    def companions(self) -> Mapping[str, tuple[Checkpoint, Sink]]:
        return {kind: (state, _StateWriter(self, state)) for kind, state in self._states.items()}

    def _reserve_objects(self) -> None:
        """Objects keep their names: they count layers and experts, never ranks."""
        bound_to_ranks = []
        for blob in self._source.metadata.objects.values():
            if blob.name.startswith(nemo2_optimizer.PREFIXES):
                continue  # refused or dropped before
            found = _EXTRA_STATE.fullmatch(blob.name)
            if found is None and not _WHOLE.fullmatch(blob.name):
                bound_to_ranks.append(blob.name)
                continue
            name = self._renamed(found, blob.name) if found else blob.name
            if name is None:
                continue  # of a layer that is not kept
            found = _EXTRA_STATE.fullmatch(name)
            rank = self._owner(found[1], found[2]) if found else 0
            file, file_name = self._file_for(rank, blob.length)
            offset = file.size
            file.size += blob.length
            self._carried.append((blob, file, offset))
            self._objects.append(DistObject(name, file_name, offset, blob.length))
        if bound_to_ranks:
            kinds = sorted({name.partition("/")[0] for name in bound_to_ranks})
            self._notes.append(f"state of single ranks fits no other layout: {some(kinds)} left out")

    def _renamed(self, found: re.Match[str], name: str) -> str | None:
        """An object's name among the layers that are kept."""
        if self._source.layers is None:
            return name
        prefix = PREFIX if name.startswith(PREFIX) else ""
        index, lead = (tuple(map(int, text.split("."))) for text in found.group(2, 3))
        module = found[1].removeprefix(prefix)
        axes = nemo2_names.leading_axes(module)
        place = nemo2_names.kept(module, lead[:axes], index[:axes], self._source.layers)
        if place is None:
            return None
        numbers = (".".join(map(str, (*a, *b[axes:]))) for a, b in ((place[2], index), (place[1], lead)))
        return f"{prefix}{place[0]}._extra_state/shard_{'_'.join(numbers)}"

    def _owner(self, module: str, offsets: str) -> int:
        """The first rank that holds the module of an ``_extra_state`` object."""
        stored = module.removeprefix(PREFIX)
        index = tuple(map(int, offsets.split(".")))
        axes = nemo2_names.leading_axes(stored)
        name = nemo2_names.logical_name(stored, index[:axes]) if len(index) >= axes else stored
        layers, layer, expert = self._sizes["layers"], _LAYER.search(name), _EXPERT.search(name)
        inside = layer is not None and not name.startswith("mtp.")  # those stand behind all others
        position = int(layer[1]) if layer and inside else -1 if name.startswith("embedding") else layers
        position = -1 if nemo2_names.is_beside(name) else position
        owner = self.layout.expert_rank(int(expert[1]), self._sizes["experts"]) if expert else 0
        return self.layout.rank(0, self.layout.stage(position, layers), owner)

    # what is not tensors

    def finish(self) -> None:
        for blob, file, offset in self._carried:
            source = self._source.directory.file(self._at(blob.file_name))
            _copy(source, blob.offset, blob.length, file, offset)
        super().finish()

    def _metadata(self) -> bytes:
        tensors = [
            DistTensor(name, dtype, shape, tuple(chunks))
            for name, (dtype, shape, chunks) in self._tensors.items()
        ]
        return torch_dist_writer.emit_metadata(tensors, self._objects, self._flattened)

    def _write_context(self) -> None:
        """Every file of the source that is no tensor; in the context, the layout changed."""
        source, changed = self._source, self._changed_context()
        for name in _files(source.directory, source.weights):
            if name in changed:
                self._output.write(name, changed[name])
                continue
            file = source.directory.file(name)
            written = self._output.file(name)
            written.size = file.size
            _copy(file, 0, file.size, written, 0)
            file.check_unchanged()

    def _changed_context(self) -> dict[str, bytes]:
        context = self._source.context
        if context is None:
            return {}
        said = nemo2_layout.settings(self.layout, self._sizes["layers"], context)
        config = dict(said)
        if self._source.layers is not None:
            config["num_layers"] = self._sizes["layers"]
        decoder: dict[str, nemo2_layout.Setting] = {}  # where its config is one of several
        inner = LANGUAGE if isinstance(context.given.get(LANGUAGE), Node) else ""
        stated = context.decoder_fields.get("vocab_size")
        if stated is not None and stated != self._sizes["vocab"]:
            # NeMo builds what this says and pads nothing
            (decoder if inner else config)["vocab_size"] = self._sizes["vocab"]
        if inner and self._source.layers is not None:
            decoder["num_layers"] = config.pop("num_layers")
        parts = {inner: decoder} if inner else {}
        changed = {}
        for name in ("io.json", "model.yaml"):
            place = f"{context.folder}/{name}" if context.folder else name
            if not self._source.directory.exists(place):
                continue
            data, where = self._source.directory.read(place), str(self._source.path / place)
            if name == "io.json":
                world = self.layout.world_size * (context.trainer.context or 1)
                changed[place] = nemo2_layout.with_settings(data, where, config, said, world, parts)
            else:
                changed[place] = nemo2_layout.with_yaml_settings(data, where, config, parts)
        return changed


class _StateWriter(Sink):
    """Gives a set of optimizer state its places in the files of a :class:`NeMo2Resharder`."""

    side = "nemo"

    def __init__(self, writer: NeMo2Resharder, state: OptimizerState) -> None:
        self._writer, self._state = writer, state

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        return [self._reserve(request) for request in requests]

    def _reserve(self, request: Request) -> Payload:
        key, stored, index = self._state.places[request.name]
        key, lead, index = self._writer.place_of(key, stored.shape[: len(index)], index)
        add = self._writer.add if stored.block is None else self._writer.add_flattened
        return add(request, f"{self._state.kind}.{key}", lead, index)

    def finish(self) -> None:
        """The checkpoint's writer does."""


def _files(directory: Folder, weights: str) -> Iterator[str]:
    """Files of a checkpoint that are neither tensors nor written anew: of the root, the context and the
    weights, with what is below those two."""
    for name in directory.names():
        if name not in _WRITTEN and not (not weights and name.endswith(".distcp")):
            yield name
    for folder in directory.folders():
        if folder in ("context", "weights", weights):
            yield from _below(directory, folder, folder == weights)


def _below(directory: Folder, folder: str, is_weights: bool) -> Iterator[str]:
    for name in directory.names(folder):
        last = name.rpartition("/")[2]
        if not is_weights or (last not in _WRITTEN and not last.endswith(".distcp")):
            yield name
    for below in directory.folders(folder):
        yield from _below(directory, below, False)


def _copy(source: SourceFile, start: int, length: int, target: OutputFile, offset: int) -> None:
    for done in range(0, length, _COPY_NBYTES):
        size = min(_COPY_NBYTES, length - done)
        target.pwrite(source.pread(size, start + done), offset + done)
