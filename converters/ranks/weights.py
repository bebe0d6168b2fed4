"""Weights that lie cut by model-parallel rank, one state dict a rank: NeMo 1's, and older Megatron's.

What a rank holds is handed out as it is; how it joins is not known here. Which layers a pipeline stage
holds is told by the files themselves: every stage numbers its own from 0.

Names come in our tables' words. NeMo has had two implementations: its own (``model.language_model.encoder.
layers.0.self_attention.query_key_value``) and megatron-core's (``model.decoder.layers.0.self_attention.
linear_qkv``). Wrappers add ``module.`` (``megatron_amp_O2``) or ``_orig_mod.`` (torch.compile).

Experts of megatron-core's first grouped GEMM (``GroupedMLP``) lie in two matrices, all of a layer's in each:
``weight1`` [hidden_size, num_moe_experts * rows] and ``weight2`` [num_moe_experts * columns, hidden_size] are
what the kernel reads as [num_moe_experts, hidden_size, rows] and [num_moe_experts, columns, hidden_size]: an
expert is a run of bytes, and in it every matrix is turned. Only the state dicts of ranks have them, since
torch_dist keeps these experts as it keeps all others.

Sources: nlp_overrides.py, ``modify_state_dict``, and megatron/gpt_model.py of NeMo 1.0 to 2.4;
megatron/core/transformer/moe/experts.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, product
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedFormat, some
from ...formats.torch.checkpoint import StateDict, read_state_dict
from ...mappings.nemo1.dialects import GPT, Dialect
from ...stores.files import Folder, SourceFile
from ...tensors.dtypes import DType
from ...tensors.layout import Layout
from ...tensors.stored import Extent, StoredTensor, contiguous_strides
from ..base import Piece, TensorSpec

_GROUPED_MLP: Final = re.compile(r"(.+\.mlp\.)experts\.weight([12])")
_MAX_EXPERTS: Final = 1 << 16


def is_grouped(key: str) -> bool:
    """Whether a key of a state dict holds the experts of a layer all together."""
    return _GROUPED_MLP.fullmatch(key) is not None


def split_grouped(tensors: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """The tensors of a rank, those of such experts one by one, under the names of sequential experts.

    Raises CorruptCheckpoint where the router beside them contradicts their shapes.
    """
    split: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        found = _GROUPED_MLP.fullmatch(key)
        if found is None:
            split[key] = tensor
            continue
        router = tensors.get(found[1] + "router.weight")
        split.update(_split_experts(found[1], int(found[2]), tensor, router, where))
    return split


def _split_experts(
    prefix: str, number: int, tensor: StoredTensor, router: StoredTensor | None, where: str
) -> Iterator[tuple[str, StoredTensor]]:
    if router is None or len(router.shape) != 2 or len(tensor.shape) != 2:
        raise CorruptCheckpoint(f"{where}: {tensor.name} has no router beside it that counts its experts")
    (count, hidden), (held, inner) = router.shape, tensor.shape[:: 1 if number == 1 else -1]
    if held != hidden or not 0 < count <= _MAX_EXPERTS or inner % count:
        raise CorruptCheckpoint(
            f"{where}: {tensor.name} has shape {list(tensor.shape)}, which is not of {count} experts of "
            f"hidden size {hidden}"
        )
    size = tensor.dtype.itemsize
    strides = contiguous_strides(tensor.shape, size)
    if [extent.strides for extent in tensor.extents] != [strides]:
        raise CorruptCheckpoint(f"{where}: {tensor.name} does not lie in one run, as its kernel needs it")
    (whole,) = tensor.extents
    rows = inner // count
    # stored [hidden, rows] or [columns, hidden], named [rows, hidden] or [hidden, columns]
    shape, width = ((rows, hidden), rows) if number == 1 else ((hidden, rows), hidden)
    for expert in range(count):
        name = f"{prefix}experts.local_experts.{expert}.linear_fc{number}.weight"
        offset = whole.offset + expert * rows * hidden * size
        extent = Extent(whole.file, offset, (0, 0), shape, (size, width * size))
        yield name, StoredTensor(name, tensor.dtype, shape, (extent,))


#: the second matrix of a gated MLP that is not fused (``activation: swiglu``, not ``fast-swiglu``)
_UP: Final = re.compile(r"(.+\.mlp)\.dense_h_to_4h_2\.(.+)")
_LAYER: Final = re.compile(r"(decoder|encoder)\.layers\.(\d+)\.(.+)")
_CHUNK: Final = re.compile(r"model(\d+)\.(.+)")
#: TransformerEngine's grouped experts: one parameter each, numbered behind
_GROUPED: Final = re.compile(r"(.+\.mlp\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)")
_SHARED: Final = re.compile(r"(.+\.mlp)\.shared_experts?\.(.+)")
#: computed from the config whenever a model is built
DERIVED: Final = ("rotary_pos_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Name:
    """A tensor of a rank's state dict: its name in our tables' words but for the layer, which counts
    from 0 in each run of layers; ``chunk`` is the run where a rank holds several (interleaved stages).
    ``half`` is 0 or 1 for one of two matrices that a table keeps as one, gate and up; ``stack`` the module
    that holds the layers."""

    text: str
    layer: int | None
    chunk: int = 0
    half: int | None = None
    stack: str = "decoder"

    def at(self, layer: int | None) -> str:
        """The whole name, for the layer of that number in the model."""
        return self.text if layer is None else f"{self.stack}.layers.{layer}.{self.text}"


def parse(key: str, dialect: Dialect = GPT) -> Name:
    """The tensor that a key of a state dict is, as far as keys tell."""
    key = key.replace("._orig_mod", "")
    chunk = _CHUNK.fullmatch(key)
    number = int(chunk[1]) if chunk else 0
    key = chunk[2] if chunk else key.removeprefix(dialect.prefix)
    while key.startswith("module."):
        key = key.removeprefix("module.")
    up = _UP.fullmatch(key)
    name = _expert_name(dialect.read(f"{up[1]}.dense_h_to_4h.{up[2]}" if up else key))
    half = 1 if up else None
    layer = _LAYER.fullmatch(name)
    if layer is None or layer[1] != dialect.stack:
        return Name(name, None, number, half)
    return Name(layer[3], int(layer[2]), number, half, layer[1])


def _expert_name(name: str) -> str:
    grouped = _GROUPED.fullmatch(name)
    if grouped:
        return f"{grouped[1]}.local_experts.{grouped[4]}.{grouped[2]}.{grouped[3]}"
    shared = _SHARED.fullmatch(name)
    return f"{shared[1]}.shared_experts.{shared[2]}" if shared else name


#: (tensor-parallel rank, pipeline rank)
Rank = tuple[int, int]
_TENSOR: Final = re.compile(r"mp_rank_(\d{2,4})")
_BOTH: Final = re.compile(r"tp_rank_(\d{2,4})_pp_rank_(\d{3,5})")
_SHARDED: Final = re.compile(r"(?:mp_rank_\d+_)?fsdp_shard_\d+")


def find_ranks(folder: Folder, weights: str) -> dict[Rank, str]:
    """The file of every rank: ``weights`` by itself, or one in a folder for each rank.

    Raises CorruptCheckpoint where ranks are missing, UnsupportedFormat for shards of FSDP.
    """
    found: dict[Rank, str] = {(0, 0): weights} if folder.exists(weights) else {}
    for name in folder.folders():
        tensor, both = _TENSOR.fullmatch(name), _BOTH.fullmatch(name)
        if _SHARDED.fullmatch(name):
            raise UnsupportedFormat(
                f"{folder.path}: {name} holds a shard of FSDP, flattened parameters",
                hint="save the model with fsdp_sharded_checkpoint: false",
            )
        if not (tensor or both):
            continue
        rank = (int(both[1]), int(both[2])) if both else (int(tensor[1]), 0) if tensor else (0, 0)
        if rank in found:
            raise CorruptCheckpoint(f"{folder.path}: {name} and {found[rank]} are of the same rank")
        found[rank] = f"{name}/{weights}"
    if not found:
        raise CorruptCheckpoint(f"{folder.path}: has no {weights}, by itself or in folders of ranks")
    sizes = [max(rank[i] for rank in found) + 1 for i in (0, 1)]
    missing = [rank for rank in product(*map(range, sizes)) if rank not in found]
    if missing:
        raise CorruptCheckpoint(
            f"{folder.path}: of {sizes[0]} x {sizes[1]} model-parallel ranks {len(missing)} are missing: "
            f"(tensor, pipeline) {some(missing)}",
            hint="the copy is incomplete",
        )
    return dict(sorted(found.items()))


@dataclass(slots=True)
class Pieces:
    """What the tensor-parallel ranks hold of one tensor: for each rank one tensor, or two that stand
    for the halves of one. ``stage`` is their pipeline rank."""

    stage: int
    ranks: dict[int, dict[int, StoredTensor]] = field(default_factory=dict)

    def of(self, rank: int, where: str) -> StoredTensor:
        """The rank's tensor, its halves one after the other."""
        halves = self.ranks.get(rank)
        if not halves:
            raise CorruptCheckpoint(f"{where} is missing on tensor-parallel rank {rank}")
        if 0 not in halves:
            raise CorruptCheckpoint(f"{where}: tensor-parallel rank {rank} has its second half only")
        if len(halves) == 1:
            return halves[0]
        gate, up = halves[0], halves[1]
        if gate.shape != up.shape or gate.dtype != up.dtype:
            raise CorruptCheckpoint(f"{where}: gate and up differ in shape or dtype")
        moved = [e._replace(start=(e.start[0] + gate.shape[0], *e.start[1:])) for e in up.extents]
        shape = (2 * gate.shape[0], *gate.shape[1:])
        return StoredTensor(gate.name, gate.dtype, shape, (*gate.extents, *moved))


class RankWeights:
    """The tensors of all ranks under their names in the whole model.

    With one tensor-parallel rank a tensor lies there whole, but for those of which ``partial`` says otherwise
    by their name. Raises CorruptCheckpoint for ranks that do not belong together.
    """

    def __init__(
        self,
        folder: Folder,
        files: Mapping[Rank, str],
        read: Callable[[SourceFile], StateDict] = read_state_dict,
        dialect: Dialect = GPT,
        partial: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.path = folder.path
        self._read_file, self._dialect, self._partial = read, dialect, partial
        self.tensor_parallel_size, self.pipeline_parallel_size = (
            max(rank[i] for rank in files) + 1 for i in (0, 1)
        )
        self.skipped: dict[str, int] = {}
        self.derived: list[tuple[str, StoredTensor]] = []
        #: what is held by more than one pipeline stage: (a copy, the first one)
        self.repeated: list[tuple[StoredTensor, StoredTensor]] = []
        #: what the files call each tensor: its keys by half (gate is 0, up is 1)
        self.keys: dict[str, dict[int, str]] = {}
        #: keys of what is computed anew, with their tensors
        self.derived_keys: dict[str, StoredTensor] = {}
        #: keys of what is no tensor (``_extra_state``), with the layer in the model
        self.nothing: dict[str, tuple[str, int | None]] = {}
        #: whether experts lie all together (``experts.weight1``), so that ``keys`` of them are not the files'
        self.grouped = False
        #: keys of the dialect's copies, with those of their originals
        self.copies: dict[str, str] = {}
        self._states: dict[str, StateDict] = {}
        self._pieces: dict[str, Pieces] = {}
        self._read(folder, files)

    def _parse(self, key: str) -> Name:
        return parse(key, self._dialect)

    def _read(self, folder: Folder, files: Mapping[Rank, str]) -> None:
        named: dict[Rank, list[tuple[Name, StoredTensor]]] = {}
        for rank, file_name in files.items():
            state = self._states[file_name] = self._read_file(folder.file(file_name))
            self.grouped = self.grouped or any(map(is_grouped, state.tensors))
            tensors = split_grouped(state.tensors, f"{self.path}: {file_name}")
            self.copies |= self._copies(tensors)
            named[rank] = [(self._parse(key), tensor) for key, tensor in tensors.items()]
            for what, rest in (("_extra_state objects", state.others), ("other entries", state.around)):
                if rest:
                    self.skipped[what] = self.skipped.get(what, 0) + len(rest)
        starts = self._starts(named)
        for (tensor_rank, stage), entries in named.items():
            seen: set[tuple[str, int | None]] = set()
            for name, tensor in entries:
                run = name.chunk * self.pipeline_parallel_size + stage
                whole = name.at(None if name.layer is None else starts[run] + name.layer)
                self.keys.setdefault(whole, {}).setdefault(name.half or 0, tensor.name)
                if name.text in DERIVED:
                    self.derived_keys.setdefault(tensor.name, tensor)
                if tensor.name in self.copies:
                    self._add(name, whole, (tensor_rank, stage), tensor)
                    continue
                if (whole, name.half) in seen and name.text not in DERIVED:  # each run has those
                    raise CorruptCheckpoint(f"{self.path}: {whole} is there twice, under two names")
                seen.add((whole, name.half))
                self._add(name, whole, (tensor_rank, stage), tensor)

        for (_, stage), file_name in files.items():
            for key in self._states[file_name].others:
                name = self._parse(key)
                run = name.chunk * self.pipeline_parallel_size + stage
                layer = None if name.layer is None else starts.get(run, 0) + name.layer
                self.nothing.setdefault(name.at(layer), (key, layer))

    def _copies(self, keys: Collection[str]) -> dict[str, str]:
        """Keys of what the dialect keeps twice, where both are there, with those of the originals."""
        return {
            key: original
            for key in keys
            for copy, whole in self._dialect.copies
            if key.endswith("." + copy) and (original := key.removesuffix(copy) + whole) in keys
        }

    def _starts(self, named: Mapping[Rank, Sequence[tuple[Name, StoredTensor]]]) -> dict[int, int]:
        """By how much the numbers of each run of layers, in model order, are off."""
        held: dict[int, set[int]] = {}
        for (_, stage), entries in named.items():
            for name, _ in entries:
                layers = held.setdefault(name.chunk * self.pipeline_parallel_size + stage, set())
                if name.layer is not None:
                    layers.add(name.layer)
        runs = sorted(held)
        starts: dict[int, int] = {}
        ends = [0, *accumulate(len(held[run]) for run in runs)]
        for run, start in zip(runs, ends, strict=False):
            layers = held[run]
            first = min(layers, default=0)
            if sorted(layers) != list(range(first, first + len(layers))) or first not in (0, start):
                raise CorruptCheckpoint(
                    f"{self.path}: pipeline stage {run % self.pipeline_parallel_size} holds layers "
                    f"{some(sorted(layers))}, where {len(layers)} numbered from 0 are expected"
                )
            starts[run] = start - first
        self.layers_of_runs = [len(held[run]) for run in runs]
        return starts

    def _add(self, name: Name, whole: str, rank: Rank, tensor: StoredTensor) -> None:
        if name.text in DERIVED:
            self.derived.append((name.text, tensor))
            return
        halves = self._pieces.setdefault(whole, Pieces(rank[1])).ranks.setdefault(rank[0], {})
        first = halves.get(name.half or 0)
        if first is None:
            halves[name.half or 0] = tensor
        elif first.shape != tensor.shape or first.dtype != tensor.dtype:
            raise CorruptCheckpoint(f"{self.path}: {whole} differs between pipeline stages")
        else:
            self.repeated.append((tensor, first))

    @property
    def layout(self) -> Layout:
        """The parallel sizes, and the layers of the stages where they are not equal."""
        counts = self.layers_of_runs
        even = len(set(counts)) == 1
        stages, virtual = self.pipeline_parallel_size, len(counts) // self.pipeline_parallel_size
        return Layout(
            self.tensor_parallel_size,
            stages,
            virtual_pipeline_parallel_size=max(1, virtual) if stages > 1 else 1,
            stages=None if even or len(counts) != stages * max(1, virtual) else tuple(counts),
        )

    @property
    def writer(self) -> str:
        return "torch.save"

    def states(self) -> Mapping[str, StateDict]:
        """The state dict of every file."""
        return self._states

    def names(self) -> Sequence[str]:
        return list(self._pieces)

    @property
    def cut(self) -> bool:
        return self.tensor_parallel_size > 1

    def dtype(self, name: str) -> DType:
        halves = next(iter(self._pieces[name].ranks.values()))
        return halves[min(halves)].dtype

    def specs(self, name: str) -> Sequence[tuple[int | None, TensorSpec]]:
        return [(p.rank, TensorSpec(name, p.stored.dtype, p.stored.shape)) for p in self.pieces(name)]

    def pieces(self, name: str) -> Sequence[Piece]:
        """Those that are there, whether or not every tensor-parallel rank has one."""
        pieces, where = self._pieces[name], f"{self.path}: {name}"
        if not self.cut and not self._partial(name):
            return [Piece(name, None, replace(pieces.of(0, where), name=name))]
        first = pieces.stage * self.tensor_parallel_size
        return [Piece(name, first + rank, pieces.of(rank, where)) for rank in sorted(pieces.ranks)]

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """Those of the zip archives; the older layout of torch.save has none."""
        for file_name, state in self._states.items():
            yield file_name, state.file.verify_crc()
