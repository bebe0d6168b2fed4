"""Hugging Face directories: config.json, safetensors (one file or indexed shards), tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from ...errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
    UsageError,
    some,
)
from ...formats.safetensors import emit_header, read_header
from ...formats.text import plain_json
from ...formats.text.special_floats import untagged
from ...mappings import architectures, base_classes, load_table, table_for
from ...mappings.hf import unowned
from ...mappings.hf.fields import Value, read_config, write_config
from ...mappings.hf.fields_vision import carried_inside
from ...mappings.table import Table
from ...resharding.plan import Payload
from ...stores.files import SourceDir, SourceFile
from ...stores.output import OutputDirectory, OutputFile
from ...tensors.dtypes import DType
from ...tensors.stored import StoredTensor
from .. import mtp_layers, normalized_head
from ..base import HeldTensors, Model, Request, TensorSpec
from ..sink import Sink
from . import beside, heads, names, quantization
from .beside import INDEX as INDEX
from .beside import SINGLE as SINGLE
from .quantization import Quantization

#: files that make up a tokenizer, in any of the forms that transformers loads
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_CONFIG: Final = "generation_config.json"
#: keys whose presence means that the weights are not what their names say
_REFUSED: Final = {
    "auto_map": (
        "the model brings code of its own, which is never run",
        "if transformers' own class computes the same, pass --allow-ignored auto_map; if another model's "
        "does, --architecture NAME",
    ),
}


class HFCheckpoint(HeldTensors):
    """An open Hugging Face directory."""

    format = "hf"
    side = "hf"

    def __init__(
        self,
        path: Path,
        *,
        config: str | Path | None = None,
        normalize_rows: bool | None = None,
        ignore_adapter: bool = False,
        architecture: str | None = None,
    ) -> None:
        self.path = path
        self._directory = SourceDir(path)
        self._config = read_hf_config(config) if config is not None else self._own_config()
        self._tensors = self._stored = self._read_headers()
        self._raw, self._told = self._stored, list[str]()
        self._asked = architecture
        self._problem: MappingError | None = None
        word = self._take_for(architecture) if architecture else []
        self._settle_names()
        self._told += word
        self._quantization: Quantization | None = None
        self._normalized_head: tuple[str, ...] = ()
        self._decoded: quantization.Decoded | None = None
        self._absent: list[str] = []
        self._ignored = (beside.ADAPTER,) if ignore_adapter and self._directory.exists(beside.ADAPTER) else ()
        with suppress(UnsupportedConfig):  # model() raises it; the tensors can be looked at all the same
            self._quantization = quantization.find(self._config, str(self.path / "config.json"))
        self.decode_as(None)
        if normalize_rows:
            self._normalize_rows()

    def _table(self) -> Table:
        return load_table(self._asked) if self._asked else table_for(self._config, str(self.path))

    def _take_for(self, architecture: str) -> list[str]:
        """A note that the user's word is taken for what this is, where config.json does not tell.

        Raises UsageError where it does, UnsupportedArchitecture for a name without a table.
        """
        load_table(architecture)
        kind, own_code = self._config.get("model_type"), self._config.get("auto_map") is not None
        if not own_code and kind in architectures():
            raise UsageError(
                f"{self.path}: config.json says model_type {kind!r}, which has a table, and names no code",
                hint="leave out --architecture",
            )
        said = f"model_type {kind!r}" + (" with code of its own, which is not run" if own_code else "")
        return [f"config.json says {said}: on request it is taken for {architecture!r}"]

    def _settle_names(self) -> None:
        """Take tensors by the names of the table, and for the class that has them; :meth:`model` raises what
        stands in the way, since the tensors can be looked at all the same."""
        where = str(self.path)
        try:
            table = self._table()
            model, _ = read_config(table.fields, self._config, tuple(self._config))
        except (NemoconvError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return  # model() meets it again
        try:
            tied = bool(model.get("share_embeddings_and_output_weights"))
            found = names.named(table, self._stored, where, tied=tied)
        except MappingError as error:
            self._problem = error
            return
        self._told = found.notes()
        self._tensors = self._stored = found.tensors
        larger = None if self._asked else heads.class_of_all(self._config, self._stored, where)
        if larger is not None:
            self._told.append(
                f"config.json names {self._config.get('architectures')}, and the tensors are those of a "
                f"{larger}: architectures is taken to be {[larger]}"
            )
            self._config = {**self._config, "architectures": [larger]}

    def _check_output_layer(self, table: Table, config: Mapping[str, Value]) -> None:
        """A model saved without its output layer can be completed only where that is the embedding."""
        outputs = {p.hf for rule in table.rules if rule.nemo == "output_layer.weight" for p in rule.parts}
        named, tied = self._config.get("architectures"), config.get("share_embeddings_and_output_weights")
        lacks = bool(outputs) and not outputs & self._tensors.keys() and not tied
        if lacks and isinstance(named, list) and set(named) & set(base_classes(table)):
            raise UnsupportedArchitecture(
                f"{self.path}: is a {named[0]}, which has no output layer, and config.json says that the "
                f"embedding is none (tie_word_embeddings); {table.hf_class} has one"
            )

    def plain(self) -> Mapping[str, StoredTensor]:
        """Under the names of the file, unless they are read otherwise than they lie there."""
        return self._raw if self._tensors is self._stored else self._tensors

    def _check_quantization(self) -> None:
        where = str(self.path / "config.json")
        how = quantization.find(self._config, where)
        if how is not None and not (self._decoded and self._decoded.count):
            raise UnsupportedConfig(
                f"{where}: {quantization.KEY} says {how.kind}, but no tensor is quantized",
                hint=f"if the weights are plain, pass --allow-ignored {quantization.KEY}",
            )

    def decode_as(self, dtype: DType | None) -> None:
        if self._quantization is not None:
            self._decoded = quantization.decode(self._stored, self._quantization, str(self.path), dtype)
            self._tensors = self._decoded.tensors

    def _normalize_rows(self) -> None:
        names = self._table().normalized_head
        if not names or self._quantization is not None:
            raise UsageError(
                f"{self.path}: is of no model whose own code normalises rows",
                hint="leave out --normalize-rows",
            )
        self._tensors, self._normalized_head = normalized_head.normalized(self._stored, names), names

    def notes(self) -> Sequence[str]:
        left = [*beside.left_note(*left_weights(self._directory)), *beside.adapter_note(self._directory)]
        rows = normalized_head.note(self._stored, self._normalized_head)
        return [*self._decoding(), *self._told, *rows, *left, *self._absent]

    def _decoding(self) -> list[str]:
        return self._decoded.notes(self._quantization) if self._decoded and self._quantization else []

    def _own_config(self) -> dict[str, Value]:
        return parse_config(self._directory.read("config.json"), str(self.path / "config.json"))

    def _read_headers(self) -> dict[str, StoredTensor]:
        if not self._directory.exists(INDEX) and not self._directory.exists(SINGLE):
            self._refuse_other_weights()
        return read_shards(self._directory)

    def _refuse_other_weights(self) -> None:
        names = list(self._directory.names())
        pickled = [n for n in names if n.startswith("pytorch_model") and n.endswith(".bin")]
        if pickled:
            raise UnsupportedFormat(
                f"{self.path}: the weights are pickles ({some(pickled, 3)}), which can run code when loaded",
                hint="convert them to safetensors first, on a machine you can spare",
            )
        shards = [n for n in names if n.endswith(".safetensors")]
        if any(n.startswith("consolidated") for n in shards):
            raise UnsupportedFormat(
                f"{self.path}: holds {some(shards, 3)} in Mistral's own format (with params.json), which has "
                "other names and another order of rows than transformers'",
                hint=f"take the same repository's {SINGLE} or {INDEX} with its shards",
            )
        if shards:
            raise CorruptCheckpoint(
                f"{self.path}: has {some(shards, 3)} but neither {SINGLE} nor {INDEX}",
                hint="finish the download; without the index nobody knows which shards belong",
            )
        raise CorruptCheckpoint(f"{self.path}: has config.json but no {SINGLE} and no {INDEX}")

    def dtype(self, name: str) -> DType:
        return self._tensors[name].dtype

    @property
    def config(self) -> Mapping[str, Value]:
        return self._config

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        beside.check_adapter(self._directory, self._ignored)
        beside.check_unmerged(self._stored, self.path)
        beside.check_layer_types(self._config, str(self.path / "config.json"))
        if quantization.KEY not in allow_ignored:
            self._check_quantization()
        if self._problem is not None:
            raise self._problem
        table = self._table()
        owned = frozenset().union(*(rule.hf_keys for rule in table.fields))
        unowned_keys = [key for key in self._config if key not in owned]
        read_config(table.fields, self._config, (*allow_ignored, *unowned_keys))  # what a rule refuses first
        allow_ignored = (*allow_ignored, *(_REFUSED if self._asked else ()))
        for key, (why, remedy) in _REFUSED.items():
            if self._config.get(key) is not None and key not in allow_ignored and key not in owned:
                raise UnsupportedConfig(f"{self.path / 'config.json'}: {key} is set: {why}", hint=remedy)
        allowed = (*allow_ignored, *_REFUSED, quantization.KEY)
        config, passed = read_config(table.fields, self._config, allowed)
        self._check_output_layer(table, config)
        normalized_head.settle(config, self._directory, asked=bool(self._normalized_head))
        promised = config.get(mtp_layers.COUNT)
        mtp_layers.settle(table, config, self._tensors.keys(), allow_ignored)
        self._absent = mtp_layers.absent(promised, config, self._config, allow_ignored)
        files: dict[str, SourceFile | bytes] = dict(self.tokenizer_files)
        if self._directory.exists(GENERATION_CONFIG):
            plain_json.loads(self._directory.read(GENERATION_CONFIG), str(self.path / GENERATION_CONFIG))
            files[GENERATION_CONFIG] = self._directory.file(GENERATION_CONFIG)
        files |= {name: self._directory.file(name) for name in table.files if self._directory.exists(name)}
        inert = unowned.carried(self._config, passed)
        ignored = sorted([*(key for key in allow_ignored if key in self._config), *self._ignored])
        notes = unowned.notes(self._config, passed, carried_inside(table.fields, config))
        return Model(table, config, inert, files, ignored, notes=notes)

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return {n: self._directory.file(n) for n in TOKENIZER_FILES if self._directory.exists(n)}

    def describe(self) -> dict[str, Value]:
        known = {"config.json", INDEX, GENERATION_CONFIG, *TOKENIZER_FILES}
        with suppress(UnsupportedArchitecture):
            known.update(self._table().files)
        files = {tensor.extents[0].file.name: tensor.extents[0].file.size for tensor in self._stored.values()}
        others = [n for n in self._directory.names() if n not in known and n not in files]
        return {
            "writer": f"transformers {self._config.get('transformers_version', '(version not recorded)')}",
            "files": files,
            "not converted": others,
            **({"quantization": "; ".join(self._decoding())} if self._decoded else {}),
        }

    def close(self) -> None:
        self._directory.close()


def read_index(directory: SourceDir) -> dict[str, str] | None:
    """Tensor name -> shard, as the index says, None where there is none."""
    if not directory.exists(INDEX):
        return None
    where = str(directory.path / INDEX)
    index = plain_json.loads(directory.read(INDEX), where)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise CorruptCheckpoint(f"{where}: has no weight_map of tensor names to files")
    return weight_map


def left_weights(directory: SourceDir) -> tuple[list[str], bool]:
    """Files with weights that are not read, and whether that is because of model.safetensors."""
    single, left = beside.shards_of(directory, read_index(directory))
    return left, single


def read_shards(directory: SourceDir) -> dict[str, StoredTensor]:
    """Every tensor of model.safetensors or, where that is not there, of the shards that the index lists.

    Raises CorruptCheckpoint where index and shards do not agree.
    """
    path, weight_map = directory.path, read_index(directory)
    if weight_map is None or beside.shards_of(directory, weight_map)[0]:
        return read_header(directory.file(SINGLE))[0]
    tensors: dict[str, StoredTensor] = {}
    missing = sorted(name for name in set(weight_map.values()) if not directory.exists(name))
    if missing:
        raise CorruptCheckpoint(
            f"{path}: {len(missing)} of {len(set(weight_map.values()))} shards are missing: {some(missing)}",
            hint="finish the download",
        )
    for file_name in sorted(set(weight_map.values())):
        for name, tensor in read_header(directory.file(file_name))[0].items():
            if name in tensors:
                raise CorruptCheckpoint(f"{path}: tensor {name!r} lies in two shards")
            if weight_map.get(name) != file_name:
                raise CorruptCheckpoint(
                    f"{path / file_name}: holds {name!r}, which {INDEX} places in "
                    f"{weight_map.get(name, 'no file')!r}",
                    hint="shards of two models seem to be mixed",
                )
            tensors[name] = tensor
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise CorruptCheckpoint(f"{path}: {len(absent)} tensors of {INDEX} are in no shard: {some(absent)}")
    return tensors


def read_hf_config(where: str | Path) -> dict[str, Value]:
    """A config.json, given as the file or as the directory that holds it."""
    place = Path(where)
    file = SourceFile(place / "config.json" if place.is_dir() else place)
    with closing(file):
        return parse_config(file.pread(file.size, 0), file.path)


def parse_config(data: bytes, where: str) -> dict[str, Value]:
    """A config.json, in which infinities and NaN may stand in either of their spellings."""
    found: dict[str, Value] = untagged(plain_json.loads_object(data, where, allow_nonfinite=True))
    return found


class ShardWriter(Sink):
    """safetensors shards, then the index."""

    side = "hf"

    def __init__(self, output: OutputDirectory, max_shard_nbytes: int) -> None:
        self._output, self._max_shard_nbytes = output, max_shard_nbytes
        self._headers: list[tuple[OutputFile, bytes]] = []
        self._index: dict[str, str] = {}
        self._nbytes = self._parameters = 0

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        shards: list[list[int]] = [[]]
        held = 0
        sizes = [TensorSpec(r.name, r.dtype, r.shape).nbytes for r in requests]
        for position, nbytes in enumerate(sizes):
            if shards[-1] and held + nbytes > self._max_shard_nbytes:
                shards.append([])
                held = 0
            shards[-1].append(position)
            held += nbytes
        payloads: dict[int, Payload] = {}
        for number, shard in enumerate(shards, 1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            file = self._output.file(name)
            shard.sort(key=lambda i: -requests[i].dtype.itemsize)  # stable: aligns mixed types
            header, offsets = emit_header(
                [(requests[i].name, requests[i].dtype, requests[i].shape) for i in shard]
            )
            for i, offset in zip(shard, offsets, strict=True):
                payloads[i] = Payload(requests[i].name, file, offset, sizes[i])
                self._index[requests[i].name] = name
                self._nbytes += sizes[i]
                self._parameters += sizes[i] // requests[i].dtype.itemsize
            file.size = offsets[-1] + sizes[shard[-1]] if shard else len(header)
            self._headers.append((file, header))
        self.tensor_count = len(payloads)
        return [payloads[i] for i in range(len(requests))]

    def finish(self) -> None:
        for file, header in self._headers:
            file.pwrite(header, 0)
        if len(self._headers) > 1:
            index = {
                "metadata": {"total_parameters": self._parameters, "total_size": self._nbytes},
                "weight_map": dict(sorted(self._index.items())),
            }
            self._output.write(INDEX, json_bytes(index))


class HFWriter(ShardWriter):
    """Tokenizer files, safetensors shards, and config.json last."""

    def __init__(self, output: OutputDirectory, model: Model, max_shard_nbytes: int) -> None:
        super().__init__(output, max_shard_nbytes)
        self._model, self._config = model, hf_config(model)

    def finish(self) -> None:
        for name, source in self._model.files.items():
            self._output.write(name, source if isinstance(source, bytes) else source.pread(source.size, 0))
        super().finish()
        self._output.write("config.json", json_bytes(self._config))


def hf_config(model: Model) -> dict[str, Value]:
    """The config.json of a model, in the spellings of transformers 4 and 5 both."""
    config = {
        **model.inert,
        "architectures": [model.table.hf_class],
        "model_type": model.table.model_type,
        **write_config(model.table.fields, model.config),
    }
    return dict(sorted(config.items()))


def json_bytes(value: object) -> bytes:
    """A JSON file as transformers writes them."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
