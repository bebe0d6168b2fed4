"""Megatron-LM's rank directories: ``mp_rank_00_001/model_optim_rng.pt``, one ``torch.save`` a rank.

A file holds the state dict of the rank under ``model`` (under ``model0``, ``model1`` ... with interleaved
stages) beside ``args``, the run's options, and optimizer and random-generator state. Source:
megatron/training/checkpointing.py, ``get_checkpoint_name`` and ``generate_state_dict``. The options say
less of a model than a config.json, so one has to be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsupportedConfig, UnsupportedFormat, some
from ...formats.torch.checkpoint import StateDict, TorchFile, leaves
from ...formats.torch.pickles import Stub
from ...formats.torch.tensors import TensorRef
from ...mappings.hf.fields import Value
from ...stores.files import Folder, SourceDir, SourceFile
from ...tensors.stored import StoredTensor
from ..base import Model
from ..hf.checkpoint import hf_config, read_hf_config
from ..ranks.cut_checkpoint import CutCheckpoint, given_model
from ..ranks.weights import Rank, RankWeights

FILE: Final = "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d{2,4})(?:_(\d{3,5}))?(_\d{3,5})?")
_MODEL = re.compile(r"model\d*")


def find_ranks(folder: Folder) -> dict[Rank, str]:
    """The file of every rank. Raises UnsupportedFormat for experts of their own ranks, CorruptCheckpoint
    where ranks are missing."""
    found: dict[Rank, str] = {}
    for name in folder.folders():
        match = _RANK.fullmatch(name)
        if match is None or not folder.exists(f"{name}/{FILE}"):
            continue
        if match[3]:
            raise UnsupportedFormat(
                f"{folder.path}: {name} is a rank of experts (expert parallel), which are not read",
                hint="save it with --ckpt-format torch_dist, which any layout reads",
            )
        found[int(match[1]), int(match[2] or 0)] = f"{name}/{FILE}"
    sizes = [max((rank[i] for rank in found), default=-1) + 1 for i in (0, 1)]
    missing = [rank for rank in product(*map(range, sizes)) if rank not in found]
    if missing or not found:
        raise CorruptCheckpoint(
            f"{folder.path}: (tensor, pipeline) ranks {some(missing) or 'of any number'} are missing",
            hint="the copy is incomplete",
        )
    return dict(sorted(found.items()))


def read_rank(file: SourceFile) -> StateDict:
    """The model of one rank, its keys with ``model.`` or ``model<n>.`` in front; ``around`` is the rest."""
    opened = TorchFile(file)
    if not isinstance(opened.value, dict):
        raise CorruptCheckpoint(f"{file.path}: holds a {type(opened.value).__name__}, not a checkpoint")
    tensors: dict[str, StoredTensor] = {}
    others: dict[str, Any] = {}
    around: dict[str, Any] = {}
    for part, value in opened.value.items():
        if not (isinstance(part, str) and _MODEL.fullmatch(part) and isinstance(value, dict)):
            around[str(part)] = value
            continue
        for name, leaf in leaves(value, file.path):
            key = f"{part}.{name}"
            if key in tensors or key in others:
                raise CorruptCheckpoint(f"{file.path}: {key!r} is there twice")
            if isinstance(leaf, TensorRef) and not name.endswith("_extra_state"):
                tensors[key] = opened.tensor(key, leaf)
            else:
                others[key] = leaf
    if not tensors:
        raise CorruptCheckpoint(f"{file.path}: holds no model")
    return StateDict(opened, tensors, others, around)


class MegatronCheckpoint(CutCheckpoint):
    """An open directory of ranks, with ``config`` given."""

    format = "megatron"

    def __init__(self, path: Path, *, config: str | Path | None = None) -> None:
        self.path, self._folder, self._where = path, SourceDir(path), str(path)
        self._hf = read_hf_config(config) if config is not None else None
        try:
            self.ranks = find_ranks(self._folder)
            self._weights = self.weights = RankWeights(self._folder, self.ranks, read_rank)
        except BaseException:
            self._folder.close()
            raise
        self.layout = self.weights.layout

    @property
    def around(self) -> Mapping[str, Any]:
        """What the first rank's file holds beside the model."""
        return next(iter(self.weights.states().values())).around

    def arg(self, name: str) -> Any:
        """One of the run's options, None where it is not said."""
        args = self.around.get("args")
        return args.get(name) if isinstance(args, Stub) else None

    def _understand(self, allow_ignored: Sequence[str]) -> Model:
        if self._hf is None:
            raise UnsupportedConfig(
                f"{self.path}: Megatron-LM's options do not say enough of the model",
                hint="pass --config with the model's config.json",
            )
        return given_model(self._hf, str(self.path), self.keys(), allow_ignored)

    @property
    def config(self) -> Mapping[str, Value]:
        return self._hf if self._hf is not None else hf_config(self.model())

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return {}

    def skipped(self) -> Mapping[str, int]:
        held = sum(len(state.others) for state in self.weights.states().values())
        return {"_extra_state objects": held} | {f"{key!r} entries": 1 for key in self.around}

    @property
    def vocab_divisor(self) -> int | None:
        """Megatron-LM pads to a multiple of this, 128 unless told otherwise."""
        divisor = self.arg("make_vocab_size_divisible_by")
        return divisor if isinstance(divisor, int) and divisor > 0 else 128

    def plain(self) -> Mapping[str, StoredTensor]:
        if self._hf is not None or self.weights.tensor_parallel_size == 1:
            return {name: self.stored(name) for name in self.keys()}
        # no rule can join them: each under its rank's folder and the key that it has there
        return {
            file.removesuffix(FILE) + key: tensor
            for file, state in self.weights.states().items()
            for key, tensor in state.tensors.items()
        }

    def describe(self) -> dict[str, Any]:
        iteration = self.around.get("iteration")
        return {
            "writer": "Megatron-LM",
            "iteration": iteration if isinstance(iteration, int) else None,
            "layout": str(self.layout),
            "files": {file.name: file.size for file in self._folder.opened()},
            "other contents": dict(self.skipped()),
        }
