"""NeMo 2 directories as a format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypedDict

from ...errors import UnsupportedFormat
from ..format import Format, Options
from ..options import CONFIG, VOCABULARY, Option

if TYPE_CHECKING:
    from pathlib import Path

    from ...stores.output import OutputDirectory
    from ...tensors.layout import Layout
    from ..base import Checkpoint, Model
    from ..sink import Sink

EXPERTS: Final = Option(
    "experts",
    "text",
    "A key for all experts of a layer, which megatron-core's grouped GEMM and sequential experts both have "
    "on disk (stacked, the default), or keys that nothing shares (its singleton_local_shards).",
    "singleton",
    choices=("stacked", "singleton"),
)


class NeMo2Options(TypedDict, total=False):
    """Keywords of writing NeMo 2 directories."""

    experts: Literal["stacked", "singleton"] | None


class NeMo2Format(Format):
    name = "nemo2"
    side = "nemo"
    title = "NeMo 2 directory (context/, weights/*.distcp)"
    aliases = ("nemo-2.0",)
    uneven_stages = True
    options = (CONFIG, EXPERTS, VOCABULARY)
    looks_for = "weights/ or context/ with torch_dist's .metadata, metadata.json or *.distcp"

    def recognizes(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        for folder in (path / "weights", path):
            if any((folder / name).exists() for name in (".metadata", "metadata.json", ".metadata.tmp")):
                return True
            if any(folder.glob("*.distcp")):
                return True
        return (path / "context" / "io.json").exists()

    def open(self, path: Path, options: Options) -> Checkpoint:
        from .checkpoint import NeMo2Checkpoint

        return NeMo2Checkpoint(path, config=CONFIG.of(options))

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        from ...mappings.nemo2.fields import ArchivesOnly
        from .writer import NeMo2Sink

        if isinstance(model.table.nemo, ArchivesOnly):
            raise UnsupportedFormat(
                f"NeMo 2 has no model class for {model.table.architecture!r}, only NeMo 1 has",
                hint="write an archive: nemoconv hf2nemo SRC OUT.nemo, or convert --to nemo",
            )
        return NeMo2Sink(output, model, layout, singleton=EXPERTS.of(options) == "singleton")

    def rewrite(
        self, source: Checkpoint, output: OutputDirectory, model: Model, layout: Layout, options: Options
    ) -> Sink:
        from .checkpoint import NeMo2Checkpoint
        from .reshard import NeMo2Resharder

        assert isinstance(source, NeMo2Checkpoint)
        drop = options.get("drop_optimizer", False)
        return NeMo2Resharder(output, source, model, layout, drop_optimizer=drop)
