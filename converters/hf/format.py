"""Hugging Face directories as a format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from ..format import Format, Options
from ..options import CONFIG, MAX_SHARD_NBYTES, Option

if TYPE_CHECKING:
    from pathlib import Path

    from ...stores.output import OutputDirectory
    from ...tensors.layout import Layout
    from ..base import Checkpoint, Model
    from ..sink import Sink

NORMALIZE_ROWS: Final = Option(
    "normalize_rows",
    "flag",
    "Baichuan 2: divide the rows of the output layer by their lengths, as its own code does whenever it "
    "runs. Lossy.",
    when="read",
)
IGNORE_ADAPTER: Final = Option(
    "ignore_adapter",
    "flag",
    "Leave out the adapter that lies beside the weights, which transformers would apply; recorded.",
    when="read",
)
ARCHITECTURE: Final = Option(
    "architecture",
    "text",
    "What SRC is, where it brings code of its own (which is not run) or has no table.",
    example="llama",
    when="read",
)


class HFOptions(TypedDict, total=False):
    """Keywords of reading and writing Hugging Face directories."""

    ignore_adapter: bool
    max_shard_nbytes: int | str
    normalize_rows: bool
    architecture: str


class HFFormat(Format):
    name = "hf"
    side = "hf"
    title = "Hugging Face directory (config.json, safetensors)"
    aliases = ("huggingface", "transformers")
    options = (CONFIG, NORMALIZE_ROWS, IGNORE_ADAPTER, ARCHITECTURE, MAX_SHARD_NBYTES)
    looks_for = "config.json beside *.safetensors"

    def recognizes(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        weights = ("model.safetensors", "model.safetensors.index.json")
        if (path / "adapter_config.json").exists() and not any((path / name).exists() for name in weights):
            return False  # PEFT's directories may have the model's config.json, never its weights
        if any(path.glob("*.safetensors")):  # tensors alone, with our manifest, are no model
            others = ("nemoconv_manifest.json", "model_config.yaml")
            return (path / "config.json").exists() or not any((path / name).exists() for name in others)
        graphs = any(path.glob("*.onnx")) or (path / "onnx" / "model.onnx").exists()
        return (path / "config.json").exists() and not graphs

    def open(self, path: Path, options: Options) -> Checkpoint:
        from .checkpoint import HFCheckpoint

        return HFCheckpoint(
            path,
            config=CONFIG.of(options),
            normalize_rows=NORMALIZE_ROWS.of(options),
            ignore_adapter=bool(IGNORE_ADAPTER.of(options)),
            architecture=ARCHITECTURE.of(options),
        )

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        from .checkpoint import HFWriter

        return HFWriter(output, model, MAX_SHARD_NBYTES.of(options))
