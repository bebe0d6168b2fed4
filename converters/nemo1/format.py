"""``.nemo`` archives as a format: NeMo 1's GPT, BERT, T5, speech and other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from ...errors import LayoutError, UsageError
from ..format import Format, Options
from ..options import CONFIG, VOCABULARY, Option

if TYPE_CHECKING:
    from pathlib import Path

    from ...stores.output import OutputDirectory
    from ...tensors.layout import Layout
    from ..base import Checkpoint, Model
    from ..sink import Sink

RANK_FILES: Final = Option(
    "rank_files",
    "flag",
    "A state dict for each rank, as NeMo before 2.0 reads it, not torch_dist.",
)
HEAD: Final = Option(
    "head",
    "text",
    "Head of a hybrid speech model to convert: transducer (the default) or ctc.",
    "ctc",
    choices=("transducer", "ctc"),
    when="read",
)


def _check_layout(layout: Layout, whole_experts: bool) -> None:
    """Raise LayoutError for what NeMo 1 has no settings for."""
    own = layout.expert_tensor_parallel_size is not None and not whole_experts
    if own or layout.virtual_pipeline_parallel_size > 1 or not layout.is_even:
        raise LayoutError(
            "a .nemo has equal pipeline stages of one run of layers, and experts cut as all else",
            hint="leave out --vpp, --etp and --layout, or convert it to nemo2",
        )


class NeMo1Options(TypedDict, total=False):
    """Keywords of reading and writing ``.nemo`` archives."""

    head: Literal["transducer", "ctc"] | None
    rank_files: bool


class NeMo1Format(Format):
    name = "nemo"
    side = "nemo"
    title = ".nemo archive (NeMo 1's GPT, BERT, T5, speech and other models), or what it was unpacked into"
    aliases = ("nemo1", "nemo-1.0")
    options = (CONFIG, HEAD, RANK_FILES, VOCABULARY)
    looks_for = "a .nemo or tar archive, or a folder, with model_config.yaml"

    def recognizes(self, path: Path) -> bool:
        from ..archive import archive as nemo_archive

        if path.is_dir() and any(path.glob("*.safetensors")):
            return False  # one that was converted
        return nemo_archive.peek(path) is not None

    def open(self, path: Path, options: Options) -> Checkpoint:
        from ..archive import archive as nemo_archive
        from ..archive.model import NemoModel
        from . import config as nemo1_config
        from .adapters import NeMo1Adapters
        from .checkpoint import NeMo1Checkpoint, View

        config, head = CONFIG.of(options), HEAD.of(options)
        folder, yaml = nemo_archive.take(path)
        try:
            if not nemo1_config.is_megatron(yaml):
                if config is not None:
                    raise UsageError(
                        f"{path}: a config.json cannot stand for the model_config.yaml of this class",
                        hint="leave out --config",
                    )
                return NemoModel(path, folder, yaml, head=head)
            if head is not None:
                raise UsageError(f"{path}: has no heads to choose from", hint="leave out --head")
            views: Mapping[str, View] = {"safetensors": NemoModel, "peft": NeMo1Adapters}
            return NeMo1Checkpoint(path, folder, yaml, config=config, views=views)
        except BaseException:
            folder.close()
            raise

    def output(self, target: str | Path, *, overwrite: bool = False) -> OutputDirectory:
        from ...formats.tar_output import OutputArchive

        return OutputArchive(target, overwrite=overwrite)

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        from ...mappings.families.speech import ArchiveOnly

        if isinstance(model.table.nemo, ArchiveOnly):
            from ..archive.writer import NemoModelWriter

            if VOCABULARY.of(options) is not None:
                raise UsageError("a vocabulary in a .nemo archive of this class is never padded")
            return NemoModelWriter(output, model, layout)
        from . import build as nemo1_build

        _check_layout(layout, model.table.whole_experts)
        if RANK_FILES.of(options) or nemo1_build.only_ranks(model.table):
            from .writer import NeMo1RankWriter

            return NeMo1RankWriter(output, model, layout)
        from .writer import NeMo1Sink

        return NeMo1Sink(output, model, layout)

    def rewrite(
        self, source: Checkpoint, output: OutputDirectory, model: Model, layout: Layout, options: Options
    ) -> Sink | None:
        from .checkpoint import NeMo1Checkpoint
        from .reshard import rewrite

        return rewrite(output, source, model, layout) if isinstance(source, NeMo1Checkpoint) else None
