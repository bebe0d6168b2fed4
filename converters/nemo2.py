"""NeMo 2 directories: ``context/`` beside ``weights/`` in megatron-core's torch_dist format.

Megatron stacks the layers of a homogeneous model on a leading axis and drops the layer from the name:
``decoder.layers.mlp.linear_fc2.weight`` is [num_layers, hidden_size, ffn_hidden_size]. Here a layer is
a tensor of its own, named ``decoder.layers.7.mlp.linear_fc2.weight``, whether the file stacks it or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from nemoconv.converters import manifest, nemo2_context
from nemoconv.converters.base import (
    Checkpoint,
    Converter,
    Model,
    Request,
    TensorSpec,
    WriteOptions,
    Writer,
)
from nemoconv.converters.hf import GENERATION_CONFIG, TOKENIZER_FILES, hf_config, read_hf_config
from nemoconv.converters.nemo2_context import NemoContext
from nemoconv.errors import CorruptCheckpoint, MappingError, UnsupportedConfig, UnsupportedFormat
from nemoconv.formats import plain_json, torch_dist, torch_zip
from nemoconv.formats.dtypes import DType
from nemoconv.formats.fiddle import Symbol
from nemoconv.formats.files import MAX_SMALL_FILE, SourceDir, SourceFile
from nemoconv.formats.output import OutputDirectory
from nemoconv.formats.tensors import Extent, StoredTensor
from nemoconv.formats.torch_dist import DistChunk, DistObject, DistTensor
from nemoconv.mappings import table_for, table_for_nemo
from nemoconv.mappings.config_fields import INERT, Value, read_config
from nemoconv.mappings.table import Table
from nemoconv.resharding.layout import Layout
from nemoconv.resharding.plan import Payload

PREFIX: Final = "module."
_STACKED = re.compile(r"((?:decoder|encoder)\.layers)\.(?!\d+\.)(.+)")
_LAYER = re.compile(r"((?:decoder|encoder)\.layers)\.(\d+)\.(.+)")
_CONTEXT_FILES = ("context/io.json", "context/model.yaml", "io.json", "model.yaml")
_EXTRA_STATE = "._extra_state"
#: what loaders of megatron-core 0.14 and newer ask for, and the older ones ignore
_COMMON: Final = {
    "content_metadata": {"distrib_optim_sharding_type": "fully_sharded_model_space"},
    "epoch": 0,
    "global_step": 0,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": {},
}


class NeMo2Checkpoint(Checkpoint):
    """An open NeMo 2 directory, or a bare torch_dist directory with ``config`` given."""

    format = "nemo2"
    side = "nemo"

    def __init__(self, path: Path, *, config: Path | None = None) -> None:
        self.path = path
        self._directory = SourceDir(path)
        self._weights = "weights" if (path / "weights").is_dir() else ""
        torch_dist.read_backend(self._directory, self._weights)
        self._metadata = torch_dist.read_metadata(self._directory, self._weights)
        self._manifest = manifest.read(self._directory)
        self._skipped: dict[str, int] = {}
        self._places = self._name_layers()
        self._by_layer: dict[str, dict[int, list[DistChunk]]] = {}
        self._extents: dict[DistChunk, Extent] = {}
        self._hf = read_hf_config(config) if config is not None else None
        self._context = self._read_context() if config is None else None
        self.layout = self._read_layout()

    def _at(self, name: str) -> str:
        return f"{self._weights}/{name}" if self._weights else name

    def _read_context(self) -> NemoContext | None:
        """None for a bare torch_dist directory: it can be inspected, and converted with a config."""
        if any(self._directory.exists(name) for name in _CONTEXT_FILES):
            return nemo2_context.read_context(self._directory)
        return None

    def _name_layers(self) -> dict[str, tuple[DistTensor, int | None]]:
        """Every model tensor by its per-layer name, with the index on the stacked axis if there is one."""
        places: dict[str, tuple[DistTensor, int | None]] = {}
        for key, tensor in self._metadata.tensors.items():
            if key.startswith(("optimizer.", "chained_")):
                self._skip("optimizer state tensors")
                continue
            name = key.removeprefix(PREFIX)
            stacked = _STACKED.fullmatch(name)
            entries: list[tuple[str, int | None]] = [(name, None)]
            if stacked is not None:
                layers = range(tensor.shape[0]) if tensor.shape else ()
                entries = [(f"{stacked[1]}.{layer}.{stacked[2]}", layer) for layer in layers]
            for entry, layer in entries:
                if entry in places:
                    raise CorruptCheckpoint(f"{self.path}: {entry} is stored twice, stacked and by layer")
                places[entry] = (tensor, layer)
        for key in self._metadata.objects:
            if _EXTRA_STATE in key:
                self._skip("_extra_state objects")
            else:
                self._skip("other objects")
        return places

    def _skip(self, what: str) -> None:
        self._skipped[what] = self._skipped.get(what, 0) + 1

    def _read_layout(self) -> Layout:
        if self._context is None:
            return Layout()
        sizes = self._context.trainer
        return Layout(sizes.tensor or 1, sizes.pipeline or 1)

    def keys(self) -> Sequence[str]:
        return list(self._places)

    def spec(self, name: str) -> TensorSpec:
        tensor, layer = self._places[name]
        return TensorSpec(name, tensor.dtype, tensor.shape if layer is None else tensor.shape[1:])

    def stored(self, name: str) -> StoredTensor:
        tensor, layer = self._places[name]
        if layer is None:
            extents = tuple(self._extent(tensor, chunk) for chunk in tensor.chunks)
            return StoredTensor(name, tensor.dtype, tensor.shape, extents)
        found = []
        for chunk in self._chunks_of(tensor).get(layer, ()):
            extent = self._extent(tensor, chunk)
            shift = (layer - extent.start[0]) * extent.strides[0]
            found.append(
                Extent(
                    extent.file,
                    extent.offset + shift,
                    extent.start[1:],
                    extent.shape[1:],
                    extent.strides[1:],
                )
            )
        return StoredTensor(name, tensor.dtype, tensor.shape[1:], tuple(found))

    def _chunks_of(self, tensor: DistTensor) -> dict[int, list[DistChunk]]:
        """Chunks of a stacked tensor by layer."""
        if tensor.name not in self._by_layer:
            layers: dict[int, list[DistChunk]] = {}
            for chunk in tensor.chunks:
                for layer in range(chunk.start[0], chunk.start[0] + chunk.shape[0]):
                    layers.setdefault(layer, []).append(chunk)
            self._by_layer[tensor.name] = layers
        return self._by_layer[tensor.name]

    def _extent(self, tensor: DistTensor, chunk: DistChunk) -> Extent:
        if chunk not in self._extents:
            self._extents[chunk] = torch_dist.read_chunk(self._directory, tensor, chunk, self._weights)
        return self._extents[chunk]

    @property
    def config(self) -> Mapping[str, Value]:
        if self._hf is not None:
            return self._hf
        return hf_config(self.model())

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        if self._hf is not None:
            table = table_for(self._hf, str(self.path))
            config, passed = read_config(table.fields, self._hf, allow_ignored)
            return Model(table, config, {key: self._hf[key] for key in passed}, dict(self.tokenizer_files))
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
        where = f"{self.path}: context/io.json"
        given = {**self._context.yaml_fields, **self._context.fields}
        table = table_for_nemo(self._context.config_class.module, where)
        config = table.nemo.read(self._context.config_class, given, where, allow_ignored)
        self._settle(table, config)
        files: dict[str, SourceFile | bytes] = dict(self.tokenizer_files)
        folder = self._context.generation_config
        if folder is not None:
            name = "/".join(filter(None, (self._context.folder, folder, GENERATION_CONFIG)))
            files[GENERATION_CONFIG] = self._directory.file(name)
        inert = self._manifest.get("inert_config", {}) if self._manifest else {}
        inert = {key: value for key, value in inert.items() if key in INERT}
        ignored = sorted(key for key in allow_ignored)
        return Model(table, config, inert, files, ignored)

    def _settle(self, table: Table, config: dict[str, Value]) -> None:
        """What NeMo's fields cannot say: the true vocabulary, and which biases are only zeros.

        The manifest is believed where it describes these tensors. Without it the true vocabulary is
        the config's, or if that leaves it open the tokenizer's.
        """
        rows = next(
            (self.spec(r.nemo).shape[0] for r in table.rules if r.pad and r.nemo in self._places),
            None,
        )
        written = self._manifest or {}
        told = written.get("model_config")
        if isinstance(told, dict) and rows is not None and written.get("padded_vocab_size") == rows:
            true = told.get("vocab_size")
            if config["vocab_size"] == rows and isinstance(true, int) and 0 < true <= rows:
                config["vocab_size"] = true
            kinds = {key: told.get(key) for key in ("attention_bias", "mlp_bias")}
            if config["add_bias_linear"] and True in kinds.values():
                config |= {key: value is True for key, value in kinds.items()}
        if config["vocab_size"] is None:
            config["vocab_size"] = self._tokenizer_size() or rows

    def _tokenizer_size(self) -> int | None:
        file = self.tokenizer_files.get("tokenizer.json")
        if file is None:
            return None
        tokenizer = plain_json.loads_object(file.pread(file.size, 0), file.path, max_bytes=MAX_SMALL_FILE)
        model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
        entries = model.get("vocab") if isinstance(model, dict) else None
        ids = list(entries.values()) if isinstance(entries, dict) else list(range(len(entries or ())))
        if isinstance(added, list):
            ids += [token.get("id") for token in added if isinstance(token, dict)]
        numbers = [number for number in ids if isinstance(number, int)]
        return max(numbers) + 1 if numbers else None

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        if self._context is None or self._context.tokenizer is None:
            return {}
        artifact = self._context.tokenizer.artifact
        if artifact is None:
            return {}
        place = f"{self._context.folder}/{artifact}" if self._context.folder else artifact
        if (self.path / place).is_dir():
            names = [name for name in TOKENIZER_FILES if self._directory.exists(f"{place}/{name}")]
            return {name: self._directory.file(f"{place}/{name}") for name in names}
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

    def source_files(self) -> Sequence[SourceFile]:
        return self._directory.opened()

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """The CRC-32 that zip stores beside every record of every item."""
        items: list[DistChunk | DistObject] = [
            chunk for tensor in self._metadata.tensors.values() for chunk in tensor.chunks
        ]
        items += self._metadata.objects.values()
        for item in sorted(items, key=lambda item: (item.file_name, item.offset)):
            name = self._at(item.file_name)
            yield name, torch_zip.verify_crc(self._directory.file(name), item.offset, item.length)

    def close(self) -> None:
        self._directory.close()


class NeMo2Writer(Writer):
    """One ``.distcp`` file per rank, then ``.metadata``, ``context/``, and ``metadata.json`` last."""

    side = "nemo"

    def __init__(
        self, output: OutputDirectory, model: Model, options: WriteOptions, sizes: Mapping[str, int]
    ) -> None:
        self._output, self._model, self._sizes = output, model, sizes
        # NeMo builds the vocabulary that its config states and pads nothing itself
        self._config = model.table.nemo.write({**model.config, "vocab_size": sizes["vocab"]})
        self.layout = options.layout
        self._ends: dict[int, int] = {}
        self._items: list[tuple[Payload, torch_zip.TensorItem]] = []
        self._tensors: dict[str, tuple[DType, tuple[int, ...], list[DistChunk]]] = {}
        self._objects: list[DistObject] = []

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        self._reserve_objects()
        payloads = [self._reserve(request) for request in requests]
        self.tensor_count = len(self._tensors)
        return payloads

    def _file_name(self, rank: int) -> str:
        return f"__{rank}_0.distcp"

    def _reserve(self, request: Request) -> Payload:
        name, layer = _unlayered(request.name)
        lead = () if layer is None else (1,)
        shape = request.shape if layer is None else (self._sizes["layers"], *request.shape)
        start = request.start if layer is None else (layer, *request.start)
        box = (*lead, *request.box)
        offset = self._ends.get(request.rank, 0)
        item = torch_zip.TensorItem(request.dtype, box, offset)
        file = self._output.file(f"weights/{self._file_name(request.rank)}")
        payload = Payload(f"{PREFIX}{name}{list(start)}", file, item.payload_offset, item.nbytes)
        self._ends[request.rank] = file.size = offset + item.length
        self._items.append((payload, item))
        dtype, _, chunks = self._tensors.setdefault(PREFIX + name, (request.dtype, shape, []))
        if dtype is not request.dtype:
            raise MappingError(
                f"{name}: layers have different dtypes, {dtype} and {request.dtype}, and cannot be stacked",
                hint="pass --dtype to bring them to one",
            )
        chunks.append(DistChunk(start, box, self._file_name(request.rank), offset, item.length))
        return payload

    def _reserve_objects(self) -> None:
        """``_extra_state`` of every module that TransformerEngine could hold: loaders fail without."""
        layers = self._sizes["layers"]
        item = torch_zip.object_item([None])
        for template in self._model.table.modules:
            count = layers if "{layer}" in template else 1
            for layer in range(count):
                name, _ = _unlayered(template.format(layer=layer))
                stage = self.layout.stage(layer if count > 1 else layers - 1, layers)
                rank = self.layout.rank(0, stage)
                offset = self._ends.get(rank, 0)
                file = self._output.file(f"weights/{self._file_name(rank)}")
                file.pwrite_later(offset, item)
                self._ends[rank] = file.size = offset + len(item)
                key = f"{PREFIX}{name}{_EXTRA_STATE}/shard_{layer}_{count}"
                self._objects.append(DistObject(key, self._file_name(rank), offset, len(item)))

    def finish(self) -> None:
        output = self._output
        for file in output.files().values():
            file.write_pending()
        for payload, item in self._items:
            assert payload.crc32 is not None
            payload.file.pwrite(item.header(payload.crc32), item.offset)
            payload.file.pwrite(item.trailer(payload.crc32), item.payload_offset + item.nbytes)
        tensors = [
            DistTensor(name, dtype, shape, tuple(chunks))
            for name, (dtype, shape, chunks) in self._tensors.items()
        ]
        self._write_context()
        output.write("weights/common.pt", torch_zip.object_item(_COMMON))
        output.write("weights/.metadata", torch_dist.emit_metadata(tensors, self._objects))
        output.write("weights/metadata.json", torch_dist.METADATA_JSON)

    def _write_context(self) -> None:
        model, output = self._model, self._output
        tokenizer = {name: file for name, file in model.files.items() if name in TOKENIZER_FILES}
        for name, source in model.files.items():
            folder = "artifacts" if name == GENERATION_CONFIG else nemo2_context.TOKENIZER_FOLDER
            data = source if isinstance(source, bytes) else source.pread(source.size, 0)
            output.write(f"context/{folder}/{name}", data)
        config_class, fields = self._config
        nemo = model.table.nemo
        context = nemo2_context.build_context(
            Symbol(nemo.module, nemo.model),
            Symbol(nemo.module, config_class),
            fields,
            tensor_parallel_size=self.layout.tensor_parallel_size,
            pipeline_parallel_size=self.layout.pipeline_parallel_size,
            has_tokenizer=bool(tokenizer),
            has_generation_config=GENERATION_CONFIG in model.files,
        )
        for name, data in context.items():
            output.write(f"context/{name}", data)


def _unlayered(name: str) -> tuple[str, int | None]:
    """("decoder.layers.mlp.x", 7) of "decoder.layers.7.mlp.x"; (name, None) of a name without layer."""
    match = _LAYER.fullmatch(name)
    return (f"{match[1]}.{match[3]}", int(match[2])) if match else (name, None)


class NeMo2Converter(Converter):
    name = "nemo2"
    side = "nemo"
    title = "NeMo 2 directory (context/, weights/*.distcp)"
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

    def open(self, path: Path, *, config: Path | None = None) -> Checkpoint:
        return NeMo2Checkpoint(path, config=config)

    def create(
        self, output: OutputDirectory, model: Model, options: WriteOptions, sizes: Mapping[str, int]
    ) -> Writer:
        return NeMo2Writer(output, model, options, sizes)
