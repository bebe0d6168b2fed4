"""Optimizer state in torch_dist: for each parameter, tensors of its shape, or flattened pieces of them.

Keys are ``optimizer.state.<state>.<parameter>``, with ``chained_<n>.`` in front where several optimizers
share the parameters. Megatron's distributed optimizer of core 0.5 to 0.15 (``fully_sharded_model_space``)
flattens each rank's piece: a tensor of shape [L, Y, Z] cut into pieces [1, y, z] is stored with shape
[L, Y/y, Z/z, y*z], and ``mcore_data`` keeps [L, Y, Z]. Other layouts of the state are buckets of one
layout of ranks and say nothing about parameters. Sources: megatron/core/optimizer/distrib_optimizer.py
and dist_checkpointing/strategies/resharding.py of 0.14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError, some
from ...formats.torch.dist import DistChunk, DistMetadata, DistTensor
from ...mappings.hf.fields import Value
from ...stores.files import Folder
from ...tensors.boxes import Shape, open_range
from ...tensors.stored import Extent, StoredTensor, contiguous_strides
from ..base import Checkpoint, Model, TensorSpec
from ..torch_dist import names as names
from ..torch_dist.chunks import DistChunks

_KEY = re.compile(r"((?:chained_\d+\.)?optimizer\.state\.[^.]+)\.(.+)")
PREFIXES = ("optimizer.", "chained_")


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A stored tensor of optimizer state. ``shape`` is that of the parameter; where the state is flattened
    ``block`` is the shape of the pieces, each stored as a row, else None."""

    tensor: DistTensor
    shape: Shape
    block: Shape | None


def states(metadata: DistMetadata, where: Path) -> dict[str, dict[str, StateTensor]]:
    """Stored optimizer state: by set (``optimizer.state.exp_avg``), then by the parameter's stored key.

    Raises UnsupportedError, naming the keys, for state that is not kept for each parameter.
    """
    found: dict[str, dict[str, StateTensor]] = {}
    others = [key for key in metadata.objects if key.startswith(PREFIXES)]
    for key, tensor in metadata.tensors.items():
        if not key.startswith(PREFIXES):
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            others.append(key)
            continue
        found.setdefault(match[1], {})[match[2]] = _state(tensor, metadata.mcore_data.get(key, {}), where)
    if others:
        raise UnsupportedError(
            f"{where}: its optimizer state is cut for its own layout and cannot be given another: "
            f"{some(sorted(others), 3)}",
            hint="pass --drop-optimizer to leave it out, or save with the optimizer sharding "
            "fully_reshardable (in older Megatron: fully_sharded_model_space)",
        )
    return found


def _state(tensor: DistTensor, data: Mapping[str, object], where: Path) -> StateTensor:
    true = data.get("nd_reformulated_orig_global_shape")
    if true is None:
        return StateTensor(tensor, tensor.shape, None)
    problem = f"{where}: {tensor.name[:200]} has shape {list(tensor.shape)} in .metadata"
    if not isinstance(true, (list, tuple)) or not all(type(n) is int and n > 0 for n in true):
        raise CorruptCheckpoint(f"{problem}, but its true shape is not one")
    shape, grid = tuple(true), tensor.shape[:-1]
    if len(grid) != len(shape) or any(n % cells for n, cells in zip(shape, grid, strict=True) if cells):
        raise CorruptCheckpoint(f"{problem}, which no pieces of {list(shape)} have")
    block = tuple(n // max(1, cells) for n, cells in zip(shape, grid, strict=True))
    if prod(block) != tensor.shape[-1]:
        raise CorruptCheckpoint(f"{problem}, but pieces of {list(shape)} have {prod(block):,} elements")
    return StateTensor(tensor, shape, block)


class OptimizerState(Checkpoint):
    """One set of optimizer state under the names of the parameters, read like a checkpoint of its own."""

    format = "nemo2"
    side = "nemo"

    def __init__(
        self,
        directory: Folder,
        weights: str,
        kind: str,
        stored: Mapping[str, StateTensor],
        prefix: str,
        layers: Mapping[int, int] | None = None,
    ) -> None:
        self.path = directory.path
        self.kind = kind
        self._chunks = DistChunks(directory, weights)
        #: logical name -> stored key of the parameter, the state, and the index on its leading axes
        self.places: dict[str, tuple[str, StateTensor, Shape]] = {}
        for key, state in stored.items():
            axes = names.leading_axes(key.removeprefix(prefix))
            if len(state.shape) < axes or prod(state.shape[:axes]) > names.MAX_STACKED:
                raise UnsafeCheckpoint(f"{self.path}: {kind}.{key[:200]} has shape {list(state.shape)}")
            if state.block is not None and any(n != 1 for n in state.block[:axes]):
                raise UnsupportedError(f"{self.path}: {kind}.{key[:200]} holds several layers in one piece")
            for index in product(*map(range, state.shape[:axes])):
                name = self._name(key.removeprefix(prefix), state.shape[:axes], index, layers)
                if name is None:
                    continue
                if name in self.places:
                    raise CorruptCheckpoint(f"{self.path}: {kind}: {name} is stored twice")
                self.places[name] = (key, state, index)

    @staticmethod
    def _name(key: str, lead: Shape, index: Shape, layers: Mapping[int, int] | None) -> str | None:
        """The parameter's name; None for a layer that is not kept."""
        place = (key, lead, index) if layers is None else names.kept(key, lead, index, layers)
        return None if place is None else names.logical_name(place[0], place[2])

    @property
    def stored_count(self) -> int:
        """Stored tensors; one may hold all layers."""
        return len({key for key, _, _ in self.places.values()})

    def keys(self) -> Sequence[str]:
        return list(self.places)

    def spec(self, name: str) -> TensorSpec:
        _, state, index = self.places[name]
        return TensorSpec(name, state.tensor.dtype, state.shape[len(index) :])

    def stored(self, name: str) -> StoredTensor:
        _, state, index = self.places[name]
        axes = len(index)
        extents: list[Extent] = []
        for chunk in self._chunks.at(state.tensor, index):
            if state.block is not None:
                extents += self._pieces(state, chunk, axes)
            else:
                extents.append(self._chunks.row(state.tensor, chunk, index))
        return StoredTensor(name, state.tensor.dtype, state.shape[axes:], tuple(extents))

    def _pieces(self, state: StateTensor, chunk: DistChunk, axes: int) -> Iterator[Extent]:
        """A run of a flattened piece, as boxes of the parameter."""
        assert state.block is not None
        if any(n != 1 for n in chunk.shape[:-1]):
            raise UnsupportedError(f"{self.path}: {state.tensor.name[:200]}: a chunk of several pieces")
        file, offset, _, _, strides = self._chunks.extent(state.tensor, chunk)
        first, step = chunk.start[-1], strides[-1]
        steps = contiguous_strides(state.block, step)
        corner = tuple(i * n for i, n in zip(chunk.start[:-1], state.block, strict=True))
        for low, shape in open_range(first, first + chunk.shape[-1], state.block):
            at = offset + sum(i * n for i, n in zip(low, steps, strict=True)) - first * step
            start = tuple(a + b for a, b in zip(corner, low, strict=True))
            yield Extent(file, at, start[axes:], shape[axes:], steps[axes:])

    @property
    def config(self) -> Mapping[str, Value]:
        raise UnsupportedError(f"{self.path}: {self.kind} is no model")

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        raise UnsupportedError(f"{self.path}: {self.kind} is no model")

    def describe(self) -> dict[str, Value]:
        return {"kind": self.kind}

    def close(self) -> None:
        """The files are the checkpoint's."""
