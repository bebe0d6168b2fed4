"""State dicts cut by model-parallel rank, one file a rank, under the names that another such set has.

A rank's tensor is its fragments one after another: of a gated ``linear_fc1`` a slice of gate and a slice
of up. What is not cut every tensor-parallel rank holds whole, and every stage counts its layers from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ...formats.torch.checkpoint import Entry, StateDictItem
from ...resharding.plan import Payload
from ...stores.output import OutputDirectory, OutputFile
from ...tensors.checksum import crc32, crc32_combine
from ...tensors.dtypes import DType
from ...tensors.layout import Layout
from ...tensors.stored import StoredTensor
from ..base import Request
from ..sink import Sink

if TYPE_CHECKING:
    from ..bind import Bound
    from .weights import RankWeights

#: (tensor-parallel rank, pipeline rank)
Rank = tuple[int, int]
_LAYER = re.compile(r"(\blayers\.)(\d+)\.")
_COPY_NBYTES = 8 << 20


@dataclass(slots=True)
class _Tensor:
    """A tensor of a rank: filled by payloads that follow one another, or with bytes that are there."""

    dtype: DType
    shape: tuple[int, ...]
    payloads: list[Payload] = field(default_factory=list)
    same_as: _Tensor | None = None
    data: bytes | None = None

    @property
    def crc32(self) -> int:
        if self.data is not None:
            return crc32(self.data)
        checksum = 0
        for payload in (self.same_as or self).payloads:
            assert payload.crc32 is not None
            checksum = crc32_combine(checksum, payload.crc32, payload.nbytes)
        return checksum


class RankWriter(Sink):
    """Writes a file for each rank.

    ``names`` are the source's keys of each tensor, under its name in the whole model: one, or two that
    stand for the halves of one (gate and up). ``nothing`` are keys with the value None, ``everywhere``
    tensors that every rank holds, ``tied`` the key of the last stage's copy of the embedding, and ``copies``
    keys of what a rank holds twice, with those of the originals.
    """

    side = "nemo"
    keeps_everything = True
    stores_again = False  # state dicts of ranks have what their own models hold twice: ``copies``

    def __init__(
        self,
        output: OutputDirectory,
        layout: Layout,
        num_layers: int,
        file_name: Callable[[Rank], str],
        names: Mapping[str, Mapping[int, str]],
        *,
        nothing: Iterable[tuple[str, int | None]] = (),
        everywhere: Mapping[str, StoredTensor] | None = None,
        tied: tuple[str, str] | None = None,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        self.layout = layout
        self._output, self._num_layers, self._file_name = output, num_layers, file_name
        self._names, self._nothing, self._tied = names, tuple(nothing), tied
        self._everywhere = dict(everywhere or {})
        self._copies = dict(copies or {})
        self._ranks: dict[Rank, dict[str, _Tensor | None]] = {}
        self._items: dict[Rank, StateDictItem] = {}

    def begin(self, bound: Bound) -> None:
        self._bound = bound
        self._instances = {instance.nemo: instance for instance in bound.instances}

    def file_of(self, rank: int) -> str:
        stage, tensor = divmod(rank, self.layout.stage_size)
        return self._file_name((tensor, stage))

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        held: dict[tuple[Rank, str], list[Request]] = {}
        keys: list[tuple[Rank, str]] = []
        counts: dict[tuple[Rank, str], int] = {}
        for request in requests:
            stage, tensor = divmod(request.rank, self.layout.stage_size)
            rank = tensor, stage
            number = counts[rank, request.name] = counts.get((rank, request.name), -1) + 1
            place = rank, self._key(request.name, number)
            held.setdefault(place, []).append(request)
            keys.append(place)
        self._ranks = {rank: {} for rank in self._all_ranks()}
        for (rank, key), fragments in held.items():
            self._ranks[rank][key] = _Tensor(fragments[0].dtype, self._local_shape(key, fragments))
        self._add_whole(held)
        self._add_others()
        self.tensor_count = sum(sum(t is not None for t in held.values()) for held in self._ranks.values())
        return self._place(requests, keys)

    def _all_ranks(self) -> Iterator[Rank]:
        for stage in range(self.layout.pipeline_parallel_size):
            for tensor in range(self.layout.tensor_parallel_size):
                yield tensor, stage

    def _key(self, name: str, fragment: int) -> str:
        """The key of a rank's tensor, its layer counted from the stage's first."""
        halves = self._names[self._bound.stored_name(name)]
        key = halves[fragment] if len(halves) > 1 else next(iter(halves.values()))
        return self._local(key, self._instances[name].layer)

    def _local(self, key: str, layer: int) -> str:
        if not 0 <= layer < self._num_layers:
            return key
        first = self.layout.layers(self._num_layers)[self.layout.run(layer, self._num_layers)].start
        return _LAYER.sub(lambda found: f"{found[1]}{layer - first}.", key, count=1)

    def _local_shape(self, key: str, fragments: Sequence[Request]) -> tuple[int, ...]:
        box = fragments[0].box
        if len(fragments) == 1:
            return box
        if any(other.box[1:] != box[1:] or other.start[1:] != fragments[0].start[1:] for other in fragments):
            raise UnsupportedError(f"{key}: its fragments on a rank do not lie one after the other")
        return (sum(fragment.box[0] for fragment in fragments), *box[1:])

    def _add_whole(self, held: Mapping[tuple[Rank, str], Sequence[Request]]) -> None:
        """What is not cut is on every tensor-parallel rank; a tied embedding is on the last stage again."""
        for ((tensor, stage), key), fragments in held.items():
            if self._instances[fragments[0].name].rule.cut is None:
                first = self._ranks[tensor, stage][key]
                assert first is not None
                for other in range(1, self.layout.tensor_parallel_size):
                    self._ranks[other, stage][key] = _Tensor(first.dtype, first.shape, same_as=first)
        last = self.layout.pipeline_parallel_size - 1
        if self._tied is not None and last:
            original, copy = self._tied
            for tensor in range(self.layout.tensor_parallel_size):
                first = self._ranks[tensor, 0][original]
                assert first is not None
                self._ranks[tensor, last][copy] = _Tensor(first.dtype, first.shape, same_as=first)

        for tensors in self._ranks.values():
            for again, original in self._copies.items():
                found = tensors.get(original)
                if found is not None:
                    tensors[again] = _Tensor(found.dtype, found.shape, same_as=found.same_as or found)

    def _add_others(self) -> None:
        from ...tensors.read import read_box

        for rank, tensors in self._ranks.items():
            for key, stored in self._everywhere.items():
                data = read_box(stored, (0,) * len(stored.shape), stored.shape).tobytes()
                tensors[key] = _Tensor(stored.dtype, stored.shape, data=data)
            for key, layer in self._nothing:
                position = layer if layer is not None else -1 if "embedding" in key else self._num_layers
                if self.layout.stage(position, self._num_layers) == rank[1]:
                    tensors.setdefault(self._local(key, position), None)

    def _item(self, rank: Rank, entries: Mapping[str, Entry]) -> StateDictItem:
        return StateDictItem(entries)

    def _place(self, requests: Sequence[Request], keys: Sequence[tuple[Rank, str]]) -> list[Payload]:
        ends: dict[tuple[Rank, str], int] = {}
        for rank, tensors in self._ranks.items():
            entries: dict[str, Entry] = {
                key: None if tensor is None else (tensor.dtype, tensor.shape)
                for key, tensor in sorted(tensors.items())
            }
            item = self._items[rank] = self._item(rank, entries)
            self._output.file(self._file_name(rank)).size = item.length
            filled = [key for key, entry in entries.items() if entry is not None]
            ends |= {(rank, key): at for key, at in zip(filled, item.payload_offsets, strict=True)}
        payloads = []
        for request, place in zip(requests, keys, strict=True):
            rank, key = place
            nbytes = prod(request.box) * request.dtype.itemsize
            file = self._output.file(self._file_name(rank))
            name = f"{key} of tp {rank[0]} pp {rank[1]} {list(request.start)}"
            payload = Payload(name, file, ends[place], nbytes)
            ends[place] += nbytes
            tensor = self._ranks[rank][key]
            assert tensor is not None
            tensor.payloads.append(payload)
            payloads.append(payload)
        return payloads

    def finish(self) -> None:
        for rank, item in self._items.items():
            file = self._output.file(self._file_name(rank))
            tensors = [tensor for _, tensor in sorted(self._ranks[rank].items()) if tensor is not None]
            for tensor, offset in zip(tensors, item.payload_offsets, strict=True):
                if tensor.data is not None:
                    file.pwrite(tensor.data, offset)
                elif tensor.same_as is not None:
                    _copy(tensor.same_as.payloads, file, offset)
            for at, data in item.frames([tensor.crc32 for tensor in tensors]):
                file.pwrite(data, at)


def empty_entries(weights: RankWeights) -> tuple[list[tuple[str, int | None]], list[str]]:
    """Keys to be written with the value None (and their layers), and a note if some of them had another.

    ``_extra_state`` is of one rank, and None is what every TransformerEngine takes for it. Raises
    UnsupportedError for anything else that is no tensor, and for experts that lie all together.
    """
    if weights.grouped:
        raise UnsupportedError(
            f"{weights.path}: its experts lie all together (experts.weight1) and are not cut for other ranks",
            hint="convert it to nemo2, which any layout and kind of experts reads",
        )
    full: set[str] = set()
    for name, state in weights.states().items():
        for key, value in state.others.items():
            if not key.endswith("_extra_state"):
                raise UnsupportedError(f"{weights.path}: {name} holds {key[:200]}, which is no tensor")
            if value is not None:
                full.add(key)
    notes = [f"{len(full):,} kinds of _extra_state objects become None"] if full else []
    return list(weights.nothing.values()), notes


def _copy(payloads: Iterable[Payload], file: OutputFile, offset: int) -> None:
    for payload in payloads:
        for done in range(0, payload.nbytes, _COPY_NBYTES):
            size = min(_COPY_NBYTES, payload.nbytes - done)
            file.pwrite(payload.file.read_back(payload.offset + done, size), offset + done)
        offset += payload.nbytes
