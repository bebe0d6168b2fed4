"""A ``.nemo`` in another layout: the same archive, its weights cut for other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import LayoutError
from ...formats.text import plain_yaml
from ...mappings.nemo1.fields_t5 import not_in_blocks
from ...stores.files import Folder
from ...stores.output import OutputDirectory
from ...tensors.layout import Layout
from ..archive import archive as nemo_archive
from ..base import Model
from ..ranks.writer import Rank, RankWriter, empty_entries
from ..sink import Sink
from . import build as nemo1_build
from . import config as nemo1_config
from .writer import NeMo1Sink

if TYPE_CHECKING:
    from ..bind import Bound
    from ..ranks.weights import RankWeights
    from .checkpoint import NeMo1Checkpoint

_EMBEDDING = "embedding.word_embeddings.weight"
_OUTPUT = "output_layer.weight"


def file_name(layout: Layout, rank: Rank) -> str:
    """Where NeMo 1 keeps a rank's weights. Source: nlp_overrides.py, ``inject_model_parallel_rank``."""
    tensor, stage = rank
    if layout.pipeline_parallel_size > 1:
        return f"tp_rank_{tensor:02d}_pp_rank_{stage:03d}/{nemo_archive.WEIGHTS}"
    return (
        f"mp_rank_{tensor:02d}/{nemo_archive.WEIGHTS}"
        if layout.tensor_parallel_size > 1
        else nemo_archive.WEIGHTS
    )


def check_layout(layout: Layout) -> None:
    """Raise LayoutError for what NeMo 1 has no files or settings for."""
    if layout.virtual_pipeline_parallel_size > 1 or layout.expert_parallel_size > 1:
        raise LayoutError(
            "a .nemo has no files for interleaved stages or for experts of their own ranks",
            hint="leave out --vpp and --ep, or convert it to nemo2",
        )
    plain = Layout(layout.tensor_parallel_size, layout.pipeline_parallel_size)
    if layout != plain:
        raise LayoutError(
            "a .nemo cut by ranks has equal pipeline stages",
            hint="leave out --layout, or convert it to nemo2",
        )


def changed_config(yaml: Mapping[str, Any], layout: Layout, rows: int, held: int) -> bytes:
    """``model_config.yaml`` with the parallel sizes, and the vocabulary's rows where it states them."""
    changed = dict(yaml)
    changed["tensor_model_parallel_size"] = layout.tensor_parallel_size
    changed["pipeline_model_parallel_size"] = layout.pipeline_parallel_size
    if changed.get("virtual_pipeline_model_parallel_size") is not None:
        changed["virtual_pipeline_model_parallel_size"] = None
    if layout.tensor_parallel_size == 1 and changed.get("sequence_parallel") is True:
        changed["sequence_parallel"] = False
    if changed.get("override_vocab_size") == held:
        changed["override_vocab_size"] = rows
    return plain_yaml.dumps(changed)


def rewrite(output: OutputDirectory, source: NeMo1Checkpoint, model: Model, layout: Layout) -> Sink:
    """A writer of the same archive in another layout, with weights as it has them: by rank, or not."""
    if source.rank_weights is not None:
        return NeMo1Resharder(output, source, source.rank_weights, model, layout)
    return NeMo1DistResharder(output, source, model, layout)


class NeMo1Resharder(RankWriter):
    """Writes a ``.nemo`` whose weights lie cut by rank."""

    def __init__(
        self,
        output: OutputDirectory,
        source: NeMo1Checkpoint,
        weights: RankWeights,
        model: Model,
        layout: Layout,
    ) -> None:
        sizes = model.sizes
        check_layout(layout)
        family = nemo1_config.family_of(source.yaml)
        if family is not None:
            nemo1_build.check_stages(family, layout)
        self._source = source
        tied = model.config.get("share_embeddings_and_output_weights") is True
        keys = weights.keys
        nothing, self._lost = empty_entries(weights)
        super().__init__(
            output,
            layout,
            sizes["layers"],
            lambda rank: file_name(layout, rank),
            keys,
            nothing=nothing,
            everywhere=weights.derived_keys,
            tied=(next(iter(keys[_EMBEDDING].values())), _tied_key(keys)) if tied else None,
            copies=weights.copies,
        )
        held = source.rows(_EMBEDDING)
        yaml = not_in_blocks(source.yaml)  # each head's q, k and v are written together
        self._members = {nemo_archive.CONFIG: changed_config(yaml, layout, sizes["vocab"], held)}
        for name, data in self._members.items():
            file = output.file(name)
            file.size = len(data)
        self._carried = list(_other_members(source.folder))
        for name in self._carried:
            output.file(name).size = source.folder.file(name).size

    def begin(self, bound: Bound) -> None:
        bound.leave_out_never_read()
        bound.keep_shifted()  # the config goes along, and says how they are meant
        super().begin(bound)

    def notes(self) -> list[str]:
        return self._lost

    def finish(self) -> None:
        for name, data in self._members.items():
            self._output.file(name).pwrite(data, 0)
        for name in self._carried:
            file, written = self._source.folder.file(name), self._output.file(name)
            for at in range(0, file.size, 8 << 20):
                written.pwrite(file.pread(min(8 << 20, file.size - at), at), at)
        super().finish()


def _tied_key(keys: Mapping[str, Mapping[int, str]]) -> str:
    """What the last stage calls its copy of a tied embedding, in the dialect of the other keys."""
    if _OUTPUT in keys:
        return next(iter(keys[_OUTPUT].values()))
    own = next(iter(keys[_EMBEDDING].values()))
    prefix, _, _ = own.partition("language_model." if "language_model." in own else "embedding.")
    return prefix + ("word_embeddings.weight" if "language_model." in own else _OUTPUT)


def _other_members(folder: Folder) -> list[str]:
    """Members that are neither weights nor the config: tokenizers and the like."""
    skipped = {nemo_archive.CONFIG, nemo_archive.WEIGHTS, "nemoconv_manifest.json"}
    return [name for name in folder.names() if name not in skipped]


class NeMo1DistResharder(NeMo1Sink):
    """Writes a ``.nemo`` whose weights are a distributed checkpoint, which any layout loads."""

    keeps_everything = True

    def __init__(
        self,
        output: OutputDirectory,
        source: NeMo1Checkpoint,
        model: Model,
        layout: Layout,
    ) -> None:
        check_layout(layout)
        super().__init__(output, model, layout)
        held = source.rows(_EMBEDDING)
        config = changed_config(source.yaml, layout, model.sizes["vocab"], held)
        self._yaml = plain_yaml.loads_mapping(config, nemo_archive.CONFIG)
        folder = source.folder
        self._members = {name: folder.read(name) for name in _other_members(folder)}

    def begin(self, bound: Bound) -> None:
        bound.keep_shifted()
        super().begin(bound)

    def notes(self) -> list[str]:
        return []
