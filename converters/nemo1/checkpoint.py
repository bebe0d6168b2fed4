"""NeMo 1's ``.nemo`` of Megatron language models: a tar archive, or the folder it was unpacked into."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsupportedFormat
from ...formats.tar import TarFolder
from ...formats.torch.checkpoint import StateDict, leaves, read_state_dict
from ...formats.torch.tensors import TensorRef
from ...mappings.hf.fields import Value
from ...mappings.nemo1 import families as nemo1_families
from ...mappings.nemo1 import fields_t5 as nemo1_fields_t5
from ...mappings.nemo1.families import NORM_WEIGHT
from ...mappings.table import Table
from ...stores.files import Folder, SourceDir, SourceFile
from ...tensors.layout import Layout
from ...tensors.stored import StoredTensor
from .. import believed, manifest
from ..archive import archive as nemo_archive
from ..base import Checkpoint, Model, StorageForm
from ..hf import tokenizer_files
from ..hf.checkpoint import GENERATION_CONFIG, hf_config, read_hf_config
from ..ranks.cut_checkpoint import CutCheckpoint, given_model
from ..ranks.weights import RankWeights, find_ranks
from ..torch_dist.weights import open_dist_weights
from . import config as nemo1_config

#: of a distributed checkpoint, and what the names in it begin with
DIST_FOLDER: Final = "model_weights"
PREFIX: Final = "model."
_ADAPTER: Final = "adapter"
#: opens an archive, from its place, its files and model_config.yaml
View = Callable[[Path, Folder, Mapping[str, Any]], Checkpoint]
#: in names of experts, and at the end of those of q, k and v that lie together
_EXPERT: Final = ".experts."
_FUSED: Final = tuple(
    f".{name}.{kind}" for name in ("linear_qkv", "linear_kv") for kind in ("weight", "bias")
)


class NeMo1Checkpoint(CutCheckpoint):
    """An open ``.nemo``."""

    format = "nemo"
    _views: Mapping[str, View] = MappingProxyType({})

    def __init__(
        self,
        path: Path,
        folder: Folder,
        yaml: Mapping[str, Any],
        *,
        config: str | Path | None = None,
        views: Mapping[str, View] = MappingProxyType({}),
    ) -> None:
        """``views`` are other ways to read the archive, by the formats that it is converted to."""
        self.path, self._folder, self._yaml, self._views = path, folder, yaml, views
        self._where = f"{path}: {nemo_archive.CONFIG}"
        self._hf = read_hf_config(config) if config is not None else None
        self._manifest = manifest.read(folder)
        #: of an archive in state dicts; None for a distributed checkpoint
        self._ranks: RankWeights | None = None
        if folder.exists(f"{DIST_FOLDER}/metadata.json"):
            self._weights = open_dist_weights(folder, DIST_FOLDER, PREFIX)
            self.layout = _stated_layout(yaml)
        else:
            family = nemo1_config.family_of(yaml) or nemo1_families.GPT
            ranks = find_ranks(folder, nemo_archive.WEIGHTS)
            self._ranks = RankWeights(folder, ranks, read_rank, family.dialect, _partial(yaml))
            self._weights = self._ranks
            self.layout = self._ranks.layout
            self._check_layout()

    def _check_layout(self) -> None:
        stated = _stated_layout(self._yaml)
        held = self.layout
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(stated, name) != getattr(held, name):
                key = name.replace("_parallel", "_model_parallel")
                raise CorruptCheckpoint(
                    f"{self._where}: says {key}={getattr(stated, name)}, but weights of "
                    f"{getattr(held, name)} ranks are there",
                    hint="ranks are missing, or the config is of another checkpoint",
                )

    # the model

    def _understand(self, allow_ignored: Sequence[str]) -> Model:
        files: dict[str, SourceFile | bytes] = dict(self.tokenizer_files)
        added = nemo1_config.tokenizer_config(self.tokenizer_files)
        if added is not None:
            files[tokenizer_files.CONFIG] = added
        ignored = sorted(key for key in allow_ignored if key in self._yaml)
        in_blocks = self._ranks is not None and nemo1_fields_t5.in_blocks(self._yaml)
        if self._hf is not None:
            model = given_model(self._hf, str(self.path), self.keys(), allow_ignored)
            model.files, model.ignored, model.storage = files, ignored, StorageForm(in_blocks=in_blocks)
        else:
            nemo1_config.check_family(self._yaml, self._where)
            self._refuse_adapters()
            table, config, plain_norms = nemo1_config.model_of(
                self._yaml,
                self._where,
                held=set(self.keys()),
                written_as=(self._manifest or {}).get("architecture"),
                allow_ignored=allow_ignored,
            )
            self._settle(table, config)
            inert = believed.inert_keys(self._manifest, self.tokenizer_files.get(GENERATION_CONFIG), table)
            shifted = filter(NORM_WEIGHT.fullmatch, self.keys()) if plain_norms else ()
            storage = StorageForm(frozenset(shifted), in_blocks)
            model = Model(table, config, inert, files, ignored, storage=storage)
        self._check_frequencies(model.config)
        return model

    def _refuse_adapters(self) -> None:
        adapters = [name for name in self._weights.names() if _ADAPTER in name]
        if adapters:
            raise _only_adapters(self.path, adapters, len(self._weights.names()) - len(adapters))

    def _settle(self, table: Table, config: dict[str, Value]) -> None:
        """The true vocabulary, and what else NeMo's config cannot say."""
        held = set(self.keys())
        rows = next((self.rows(r.nemo) for r in table.rules if r.pad and r.nemo in held), None)
        yaml, files = self._yaml, self.tokenizer_files
        believed.settle(
            self._manifest,
            table,
            config,
            rows,
            lambda: nemo1_config.true_vocab_size(yaml, files, rows, self.layout),
        )

    def _check_frequencies(self, config: Mapping[str, Value]) -> None:
        """Rotary frequencies are computed from the config; where a file holds them too, they must agree,
        since NeMo would take the file's."""
        if config.get("rope_scaling"):
            return
        from ...tensors.read import read_box

        for name, tensor in self._weights.derived:
            size = 2 * tensor.shape[0]
            expected = [float(config["rotary_base"]) ** (-2 * i / size) for i in range(tensor.shape[0])]
            found = read_box(tensor, (0,), tensor.shape).astype("float64")
            if any(abs(a - b) > 0.01 * b + 1e-7 for a, b in zip(found.tolist(), expected, strict=True)):
                raise UnsupportedFormat(
                    f"{self.path}: {name} holds other frequencies than rotary_base="
                    f"{config['rotary_base']:g} gives",
                    hint="the model was made with a scaling that its config does not state",
                )

    @property
    def config(self) -> Mapping[str, Value]:
        return self._hf if self._hf is not None else hf_config(self.model())

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return nemo1_config.tokenizer_of(self._folder, self._yaml)

    # facts

    def notes(self) -> Sequence[str]:
        notes = []
        if isinstance(self._folder, TarFolder) and self._folder.compressed:
            notes.append("the archive is compressed, so it was inflated into a scratch file first")
        tokenizer = self._yaml.get("tokenizer")
        if isinstance(tokenizer, dict) and not self.tokenizer_files and tokenizer.get("type"):
            name = str(tokenizer["type"])[:200]
            notes.append(f"the archive holds no tokenizer, only the name of one: {name}")
        return notes

    def view_for(self, name: str) -> Checkpoint:
        """Under NeMo's own names, where all there is to do is to move tensors as they are; or as adapters."""
        view = self._views.get(name)
        return view(self.path, self._folder, self._yaml) if view is not None else self

    def describe(self) -> dict[str, Value]:
        version = self._yaml.get("nemo_version", "(version not recorded)")
        written = self._manifest or {}
        files = {file.name: file.size for file in self._folder.opened()}
        return {
            "writer": written.get("written_by") or f"NeMo {version}, {self._weights.writer}",
            "NeMo classes": str(self._yaml.get("target", "not recorded")),
            "layout": str(self.layout),
            "files": files,
            "other contents": dict(self._weights.skipped),
        }

    # another layout

    @property
    def rank_weights(self) -> RankWeights | None:
        """The tensors as ranks hold them; None in a distributed checkpoint."""
        return self._ranks

    @property
    def yaml(self) -> Mapping[str, Any]:
        return self._yaml

    @property
    def vocab_divisor(self) -> int | None:
        """NeMo pads the tokenizer's vocabulary, unless the config overrides its size."""
        divisor = self._yaml.get("make_vocab_size_divisible_by", 128)
        if self._yaml.get("override_vocab_size") is not None or not isinstance(divisor, int) or divisor < 1:
            return None
        return divisor

    def open_folder(self) -> Folder | None:
        if isinstance(self._folder, TarFolder):  # what we write is never compressed
            return None if self._folder.compressed else TarFolder(self.path)
        return SourceDir(self.path)


def _stated_layout(yaml: Mapping[str, Any]) -> Layout:
    def size(name: str) -> int:
        value = yaml.get(f"{name}_model_parallel_size")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1

    return Layout(size("tensor"), size("pipeline"), size("expert"))


def _partial(yaml: Mapping[str, Any]) -> Callable[[str], bool]:
    """Which tensors are no wholes even where they are not cut: experts of expert-parallel ranks, which all
    count theirs from 0, and those with their rows in another order."""
    ends = _FUSED if nemo1_fields_t5.in_blocks(yaml) else ()
    experts = _stated_layout(yaml).expert_parallel_size > 1
    return lambda name: name.endswith(ends) or (experts and _EXPERT in name)


def _only_adapters(path: object, adapters: Sequence[str], others: int) -> UnsupportedFormat:
    """What to say of adapters that are asked for as a whole model."""
    said = f"{path}: holds {len(adapters)} tensors of adapters (PEFT), such as {adapters[0]}"
    if others:
        return UnsupportedFormat(said, hint="merge them with their base model in NeMo first")
    return UnsupportedFormat(
        f"{said}, and no model",
        hint="convert --to peft, which writes them for the model that they were trained for",
    )


_CHUNK: Final = re.compile(r"model\d+")


def read_rank(file: SourceFile) -> StateDict:
    """The state dict of one rank, as NeMo 1 and its training runs save it, with the runs of interleaved
    stages under names that begin with ``model0.`` and so on.

    A run keeps those beside a ``state_dict`` that is then empty, each the nested dictionaries of one run of
    layers. Source: megatron_gpt_model.py, ``on_save_checkpoint``, and
    modules/common/megatron/language_model.py, ``state_dict_for_save_checkpoint``, of NeMo 1.10 to 2.4.

    Raises CorruptCheckpoint for a file with both whole stages and runs of them.
    """
    state = read_state_dict(file)
    chunks = {key: value for key, value in state.around.items() if _CHUNK.fullmatch(key)}
    if not chunks:
        return state
    tensors: dict[str, StoredTensor] = {}
    others: dict[str, Any] = {}
    for name, leaf in leaves(chunks, file.path):
        if isinstance(leaf, TensorRef) and not name.endswith("_extra_state"):
            tensors[name] = state.file.tensor(name, leaf)
        else:
            others[name] = leaf
    if tensors and state.tensors:
        raise CorruptCheckpoint(
            f"{file.path}: holds {next(iter(state.tensors))} of a whole stage and {next(iter(tensors))} of "
            "an interleaved one"
        )
    around = {key: value for key, value in state.around.items() if key not in chunks}
    return replace(
        state,
        tensors={**state.tensors, **tensors},
        others={**state.others, **others},
        around=around,
    )
