"""The weights of any ``.nemo`` under the names that its files give them, in however many files they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ...errors import UnsupportedError, UnsupportedFormat, some
from ...formats.torch.checkpoint import StateDict, read_state_dict
from ...formats.torch.tensors import TensorRef
from ...stores.files import Folder
from ...tensors.stored import StoredTensor
from ..ranks.weights import find_ranks
from ..torch_dist.weights import open_dist_weights
from . import archive as nemo_archive

#: where a distributed checkpoint lies, and what begins the names in it that all of them share
_DIST: Final = "model_weights"
_EXTRA_STATE: Final = "_extra_state"


@dataclass(slots=True)
class ArchiveWeights:
    """``nulls`` are names that stand for None, ``files`` the members that hold weights, ``skipped`` counts
    what is left out. ``whole``: one state dict, as which the archive can be written again. ``ranks``: which
    folder is whose, counted as in :meth:`Layout.rank`."""

    tensors: dict[str, StoredTensor]
    nulls: tuple[str, ...]
    files: frozenset[str]
    skipped: dict[str, int]
    checksums: Callable[[], Iterator[tuple[str, int]]]
    whole: bool = True
    ranks: Mapping[str, int] = field(default_factory=dict)


def read_weights(folder: Folder, target: str) -> ArchiveWeights:
    """Headers only. A distributed checkpoint's tensors hold all layers each, as it stores them; those of
    ranks begin with the rank's folder (``tp_rank_00_pp_rank_000/model...``) and stay cut, since only a table
    knows how to join them.

    Raises UnsupportedFormat where ``folder``, the members of a ``target``, has no weights.
    """
    if folder.exists(nemo_archive.WEIGHTS):
        return _of_one(folder)
    if folder.exists(f"{_DIST}/metadata.json"):
        return _of_dist(folder)
    if not any(folder.exists(f"{name}/{nemo_archive.WEIGHTS}") for name in folder.folders()):
        raise UnsupportedFormat(
            f"{folder.path}: a {target or 'model of an unnamed class'} without {nemo_archive.WEIGHTS}; "
            f"it has {some([*folder.names(), *folder.folders()])}"
        )
    return _of_ranks(folder)


def _of_one(folder: Folder) -> ArchiveWeights:
    name = nemo_archive.WEIGHTS
    state = read_state_dict(folder.file(name))
    tensors, nulls, refused = _sorted_out(state)
    _refuse(folder, name, refused)
    beside = {f"entries beside the weights ({some(state.around)})": len(state.around)} if state.around else {}

    def checksums() -> Iterator[tuple[str, int]]:
        yield name, state.file.verify_crc()

    return ArchiveWeights(tensors, tuple(nulls), frozenset([name]), beside, checksums)


def _of_ranks(folder: Folder) -> ArchiveWeights:
    files = find_ranks(folder, nemo_archive.WEIGHTS)
    states = {name: read_state_dict(folder.file(name)) for _, name in sorted(files.items())}
    tensor_parallel_size = max(rank for rank, _ in files) + 1
    ranks = {
        name.rpartition("/")[0]: stage * tensor_parallel_size + rank for (rank, stage), name in files.items()
    }
    tensors: dict[str, StoredTensor] = {}
    nulls: list[str] = []
    left = 0
    for name, state in states.items():
        rank = name.removesuffix(nemo_archive.WEIGHTS)
        found, empty, others = _sorted_out(state)
        _refuse(folder, name, {key: kind for key, kind in others.items() if not key.endswith(_EXTRA_STATE)})
        tensors |= {rank + key: tensor for key, tensor in found.items()}
        nulls += [rank + key for key in empty]
        left += sum(key.endswith(_EXTRA_STATE) for key in others)

    def checksums() -> Iterator[tuple[str, int]]:
        for name, state in states.items():
            yield name, state.file.verify_crc()

    skipped = {"_extra_state objects": left} if left else {}
    return ArchiveWeights(
        tensors, tuple(nulls), frozenset(states), skipped, checksums, whole=False, ranks=ranks
    )


def _of_dist(folder: Folder) -> ArchiveWeights:
    weights = open_dist_weights(folder, _DIST, "")
    tensors = {name: weights.stored(name) for name in weights.names()}
    files = frozenset(nemo_archive.all_files(folder, _DIST))
    return ArchiveWeights(tensors, (), files, weights.skipped, weights.verify_checksums, whole=False)


def _sorted_out(state: StateDict) -> tuple[dict[str, StoredTensor], list[str], dict[str, str]]:
    """The tensors of a state dict, the names that stand for None, and the types of everything else."""
    tensors = dict(state.tensors)
    nulls, others = [], {}
    for name, value in state.others.items():
        if isinstance(value, TensorRef):
            tensors[name] = state.file.tensor(name, value)
        elif value is None:
            nulls.append(name)
        else:
            others[name] = type(value).__name__
    return tensors, nulls, others


def _refuse(folder: Folder, name: str, others: dict[str, str]) -> None:
    if others:
        said = some([f"{key} ({kind})" for key, kind in others.items()])
        raise UnsupportedError(
            f"{folder.path}: {name}: {len(others)} entries are neither tensors nor None: {said}",
            hint="no other format here can hold them",
        )
