"""Megatron-LM's rank directories as a format: read, and written again in another layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import UnsupportedFormat, some
from ..format import Format, Options
from ..options import CONFIG, VOCABULARY

if TYPE_CHECKING:
    from pathlib import Path

    from ...stores.output import OutputDirectory
    from ...tensors.layout import Layout
    from ..base import Checkpoint, Model
    from ..sink import Sink

_FILE: Final = "model_optim_rng.pt"
_NEWEST: Final = "latest_checkpointed_iteration.txt"


class MegatronFormat(Format):
    name = "megatron"
    side = "nemo"
    title = "Megatron-LM rank directories (mp_rank_XX_XXX/model_optim_rng.pt)"
    aliases = ("mcore", "megatron-core", "megatron-lm")
    writes = False
    uneven_stages = True
    options = (CONFIG, VOCABULARY)
    looks_for = f"mp_rank_*/{_FILE}, or {_NEWEST} beside folders of iterations"

    def recognizes(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        return (path / _NEWEST).is_file() or any(path.glob(f"mp_rank_*/{_FILE}"))

    def open(self, path: Path, options: Options) -> Checkpoint:
        from .checkpoint import MegatronCheckpoint

        if not any(path.glob(f"mp_rank_*/{_FILE}")):
            folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise UnsupportedFormat(
                f"{path}: holds checkpoints of several iterations", hint=f"give one of: {some(folders[-5:])}"
            )
        return MegatronCheckpoint(path, config=CONFIG.of(options))

    def rewrite(
        self, source: Checkpoint, output: OutputDirectory, model: Model, layout: Layout, options: Options
    ) -> Sink:
        from .checkpoint import MegatronCheckpoint
        from .reshard import MegatronResharder

        assert isinstance(source, MegatronCheckpoint)
        drop = options.get("drop_optimizer", False)
        return MegatronResharder(output, source, model, layout, drop_optimizer=drop)
