"""NeMo 2 directories: ``context/`` beside ``weights/`` in megatron-core's torch_dist format.

A layer, and an expert of a layer, is a tensor of its own here, whether the file stacks them or not
(see :mod:`nemoconv.converters.torch_dist.names`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import UnsupportedConfig, UnsupportedFormat
from ...formats.torch import dist as torch_dist
from ...mappings import table_for, table_for_nemo
from ...mappings.hf import unowned
from ...mappings.hf.fields import Value, read_config
from ...mappings.mtp import KEYS
from ...mappings.table import Table
from ...stores.files import SourceDir, SourceFile
from ...tensors.layout import Layout
from ...tensors.stored import StoredTensor
from .. import believed, manifest, mtp_layers
from ..base import Checkpoint, Model, TensorSpec
from ..hf.checkpoint import GENERATION_CONFIG, TOKENIZER_FILES, hf_config, read_hf_config
from ..hf.tokenizer_files import json_vocabulary_size
from ..layers import check_alike
from ..torch_dist import names
from ..torch_dist.chunks import DistChunks, Places, count_objects, join_halves, name_rows
from ..torch_dist.names import PREFIX
from . import context as nemo2_context
from . import layout as nemo2_layout
from . import optimizer as nemo2_optimizer
from .context import NemoContext
from .optimizer import OptimizerState

_CONTEXT_FILES = ("context/io.json", "context/model.yaml", "io.json", "model.yaml")


class NeMo2Checkpoint(Checkpoint):
    """An open NeMo 2 directory, or a bare torch_dist directory with ``config`` given."""

    format = "nemo2"
    side = "nemo"

    def __init__(self, path: Path, *, config: str | Path | None = None) -> None:
        self.path = path
        self._directory = SourceDir(path)
        self._weights = "weights" if (path / "weights").is_dir() else ""
        torch_dist.read_backend(self._directory, self._weights)
        self._metadata = torch_dist.read_metadata(self._directory, self._weights)
        self._manifest = manifest.read(self._directory)
        self._skipped: dict[str, int] = {}
        self._chunks = DistChunks(self._directory, self._weights)
        self._places = self._name_tensors()
        self._hf = read_hf_config(config) if config is not None else None
        #: the layers that are kept (old number -> new number), None for all
        self.layers: dict[int, int] | None = None
        self._context = self._read_context() if config is None else None
        self.layout = self._read_layout()

    def _at(self, name: str) -> str:
        return f"{self._weights}/{name}" if self._weights else name

    def _read_context(self) -> NemoContext | None:
        """None for a bare torch_dist directory: it can be inspected, and converted with a config."""
        if any(self._directory.exists(name) for name in _CONTEXT_FILES):
            return nemo2_context.read_context(self._directory)
        return None

    def _name_tensors(self) -> Places:
        """Every model tensor by its logical name, with its index on the stored leading axes."""
        stored = self._metadata.tensors
        weights = [stored[key] for key in stored if not key.startswith(nemo2_optimizer.PREFIXES)]
        if len(weights) < len(stored):
            self._skipped["optimizer state tensors"] = len(stored) - len(weights)
        count_objects(self._metadata, self._skipped)
        joined = join_halves({tensor.name: tensor for tensor in weights}, self.path)
        #: keys of which gate and up lie under keys of their own
        self.halved = joined.keys() - stored.keys()
        return name_rows(joined.values(), PREFIX, self.path)

    def _read_layout(self) -> Layout:
        if self._context is None:
            return Layout()
        return nemo2_layout.layout_of(self._context)

    @property
    def directory(self) -> SourceDir:
        return self._directory

    @property
    def weights(self) -> str:
        """The folder of the weights in the directory; empty where they lie in it."""
        return self._weights

    @property
    def metadata(self) -> torch_dist.DistMetadata:
        return self._metadata

    @property
    def context(self) -> NemoContext | None:
        return self._context

    def place(self, name: str) -> names.Place:
        """The stored key that holds a named tensor, the lengths of its leading axes and the index on them;
        of the layers that are kept, where some are left out."""
        tensor, index = self._places[name]
        return self.place_of(tensor.name, tensor.shape[: len(index)], index)

    def place_of(self, key: str, lead: tuple[int, ...], index: tuple[int, ...]) -> names.Place:
        """The same for a stored key, of the weights or of what goes along with them."""
        if self.layers is None:
            return key, lead, index
        prefix = PREFIX if key.startswith(PREFIX) else ""
        found = names.kept(key.removeprefix(prefix), lead, index, self.layers)
        assert found is not None  # only kept layers have names here
        return prefix + found[0], *found[1:]

    def keep_layers(self, chosen: Sequence[int]) -> None:
        """Be, from now on, the model of these layers only, numbered from 0 in their order.

        Raises UsageError for layers that the model has not, UnsupportedConfig where layers differ, so that
        their numbers mean something.
        """
        model = self.model()
        check_alike(model, chosen, str(self.path))
        self.layers = {old: new for new, old in enumerate(chosen)}
        places = {}
        for name, (tensor, index) in self._places.items():
            key = tensor.name.removeprefix(PREFIX)
            found = names.kept(key, tensor.shape[: len(index)], index, self.layers)
            if found is not None:
                places[names.logical_name(found[0], found[2])] = self._places[name]
        self._places = places

    def keys(self) -> Sequence[str]:
        return list(self._places)

    def spec(self, name: str) -> TensorSpec:
        tensor, index = self._places[name]
        return TensorSpec(name, tensor.dtype, tensor.shape[len(index) :])

    def stored(self, name: str) -> StoredTensor:
        return self._chunks.stored(name, *self._places[name])

    @property
    def config(self) -> Mapping[str, Value]:
        if self._hf is not None:
            return self._hf
        return hf_config(self.model())

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        files: dict[str, SourceFile | bytes] = dict(self.tokenizer_files)
        if self._hf is not None:
            table = table_for(self._hf, str(self.path))
            config, passed = read_config(table.fields, self._hf, allow_ignored)
            mtp_layers.settle(table, config, self._places.keys(), allow_ignored, told={})
            self._count_layers(config)
            inert, notes = unowned.carried(self._hf, passed), unowned.notes(self._hf, passed)
            return Model(table, config, inert, files, notes=notes)
        context = self._required_context()
        given = context.given
        where = f"{self.path}: context/io.json"
        was = self._manifest.get("architecture") if self._manifest else None
        table = table_for_nemo(context.config_class, given, where, was)
        config = table.nemo.read(context.config_class, given, where, allow_ignored)
        self._settle(table, config)
        told = self._manifest["model_config"] if self._manifest else {}
        mtp_layers.settle(table, config, self._places.keys(), allow_ignored, told=told, certain=True)
        self._count_layers(config)
        generation = None
        if context.generation_config is not None:
            parts = filter(None, (context.folder, context.generation_config, GENERATION_CONFIG))
            generation = files[GENERATION_CONFIG] = self._directory.file("/".join(parts))
        files |= {name: file for name, file in self._files_beside(table.files).items() if name not in files}
        inert = believed.inert_keys(self._manifest, generation, table)
        known = {*given, *(KEYS if given.get("mtp_num_layers") else ())}
        return Model(table, config, inert, files, sorted(key for key in allow_ignored if key in known))

    def _count_layers(self, config: dict[str, Value]) -> None:
        if self.layers is not None:
            config["num_layers"] = len(self.layers)

    def _required_context(self) -> NemoContext:
        if self._context is None:
            raise UnsupportedConfig(
                f"{self.path}: has no context/, so nothing says what model it is",
                hint="pass --config with the model's config.json",
            )
        adapter = self._directory.exists(self._at("adapter_metadata.json"))
        if adapter or self._context.peft is not None:
            raise UnsupportedFormat(
                f"{self.path}: holds a LoRA adapter, not a model", hint="merge it with its base in NeMo first"
            )
        return self._context

    def _settle(self, table: Table, config: dict[str, Value]) -> None:
        """The true vocabulary, and what else NeMo's fields cannot say."""
        rows = next(
            (self.spec(r.nemo).shape[0] for r in table.rules if r.pad and r.nemo in self._places),
            None,
        )
        believed.settle(self._manifest, table, config, rows, lambda: self._tokenizer_size() or rows)

    def _tokenizer_size(self) -> int | None:
        file = self.tokenizer_files.get("tokenizer.json")
        return None if file is None else json_vocabulary_size(file)

    def _files_beside(self, wanted: Sequence[str]) -> Mapping[str, SourceFile]:
        """Files that a table has go along, which lie with the tokenizer's."""
        context = self._required_context()
        folder = (context.tokenizer and context.tokenizer.artifact) or nemo2_context.TOKENIZER_FOLDER
        place = f"{context.folder}/{folder}" if context.folder else folder
        found = [name for name in wanted if self._directory.exists(f"{place}/{name}")]
        return {name: self._directory.file(f"{place}/{name}") for name in found}

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        if self._context is None or self._context.tokenizer is None:
            return {}
        artifact = self._context.tokenizer.artifact
        if artifact is None:
            return {}
        place = f"{self._context.folder}/{artifact}" if self._context.folder else artifact
        if (self.path / place).is_dir():
            found = [name for name in TOKENIZER_FILES if self._directory.exists(f"{place}/{name}")]
            return {name: self._directory.file(f"{place}/{name}") for name in found}
        name = Path(place).name
        return {"tokenizer.model" if name.endswith(".model") else name: self._directory.file(place)}

    def skipped(self) -> Mapping[str, int]:
        return self._skipped

    def describe(self) -> dict[str, Value]:
        files = sorted({c.file_name for t in self._metadata.tensors.values() for c in t.chunks})
        weights = {name: self._directory.file(self._at(name)).size for name in files}
        context = self._context
        written = self._manifest or {}
        described: dict[str, Value] = {
            "writer": written.get("written_by") or self._metadata.writer,
            "files": weights,
            "layout": str(self.layout) if context is not None else "not recorded",
            "chunks": sum(len(t.chunks) for t in self._metadata.tensors.values()),
            "other contents": dict(self._skipped),
        }
        if context is not None:
            described["NeMo classes"] = f"{context.model.name}({context.config_class.name})"
            described["tokenizer class"] = context.tokenizer.symbol.name if context.tokenizer else None
        return described

    def companions(self) -> Mapping[str, OptimizerState]:
        found = nemo2_optimizer.states(self._metadata, self.path)
        return {
            kind: OptimizerState(self._directory, self._weights, kind, stored, PREFIX, self.layers)
            for kind, stored in found.items()
        }

    @property
    def vocab_divisor(self) -> int | None:
        """NeMo pads where the config leaves ``vocab_size`` to the tokenizer."""
        if self._context is None:
            return None
        fields = self._context.decoder_fields
        divisor = fields.get("make_vocab_size_divisible_by")
        if fields.get("vocab_size") is not None or not isinstance(divisor, int) or divisor < 1:
            return None
        return divisor

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        return self._chunks.verify(self._metadata)

    def close(self) -> None:
        self._directory.close()
