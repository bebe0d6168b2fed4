"""An ONNX model as a checkpoint: Hugging Face names where they can be proved, else the graph's own.

A speech model that nemoconv wrote is several graphs, which are read as one with the initializers of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedArchitecture, UnsupportedError, UnsupportedFormat, some
from ...formats.onnx.file import Initializer, OnnxFile, read_onnx
from ...formats.text import plain_json
from ...mappings import table_for
from ...mappings.hf import unowned
from ...mappings.hf.fields import Value, read_config
from ...stores.files import Folder, SourceDir, SourceFile
from ...tensors.dtypes import DType
from ...tensors.stored import StoredTensor
from ..base import HeldTensors, Model
from ..hf.checkpoint import GENERATION_CONFIG, TOKENIZER_FILES, parse_config, read_hf_config
from .names.recover import RecoveredTensors, recover

SUFFIX: Final = ".onnx"
MODEL: Final = "model.onnx"
#: the key of model.onnx's metadata with the text of the config.json that it was made from
CONFIG: Final = "nemoconv.config"
_CONFIG_FILE: Final = "config.json"
#: where exporters put the model in a directory
PLACES: Final = (MODEL, "onnx/" + MODEL)

#: the key of metadata_props that lists the files of all graphs
FILES: Final = "nemoconv.files"
_FIRST_GRAPH: Final = "encoder-model.onnx"
_MOST_GRAPHS: Final = 16


def recognizes(path: Path) -> bool:
    """Whether a path is a .onnx file, or a directory with one.

    A directory that has safetensors too is a Hugging Face directory to which a graph was added.
    """
    if path.is_file():
        return path.suffix == SUFFIX
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return False
    return any((path / name).exists() for name in PLACES) or any(path.glob("*" + SUFFIX))


def locate(path: Path) -> tuple[SourceDir, str, str]:
    """(folder that bounds what may be opened, name of the model in it, its part of the folder).

    Raises UnsupportedFormat where a directory has several models and none is called model.onnx.
    """
    if path.is_file():
        root, inner = path.parent, path.name
    else:
        root, inner = path, next((name for name in PLACES if (path / name).exists()), "")
        if not inner:
            found = sorted(file.name for file in path.glob("*" + SUFFIX))
            first = found[0] if len(found) == 1 else _first_of(root, found)
            if first is None:
                raise UnsupportedFormat(
                    f"{path}: has {len(found)} ONNX models: {some(found)}",
                    hint="give the path of one of them",
                )
            inner = first
    # a model in a folder of a hub cache's snapshot links to the blobs beside the snapshots
    for parent in root.absolute().parents:
        if parent.parent.name == "snapshots":
            inner = f"{root.absolute().relative_to(parent).as_posix()}/{inner}"
            root = parent
            break
    return SourceDir(root), inner, inner.rpartition("/")[0]


class OnnxCheckpoint(HeldTensors):
    """An open ONNX model. ``raw`` are its initializers under their own names.

    Tensors have Hugging Face names if the config is known and every name can be proved; if not, they are
    ``raw``, and :meth:`model` says why.
    """

    format = "onnx"
    side = "hf"

    def __init__(self, path: Path, *, config: str | Path | None = None, approximate: bool = False) -> None:
        self.path = path
        self._folder, name, self._beside = locate(path)
        found = read_onnx(self._folder, name, self._beside)
        self.onnx: OnnxFile = _whole(self._folder, found, self._beside)
        self._config = read_hf_config(config) if config is not None else self._own_config()
        self._approximate = approximate
        self._dtype: DType | None = None
        self._bind()

    def _at(self, name: str) -> str:
        """A file beside the model, or in the folder above ``onnx/``."""
        near = f"{self._beside}/{name}" if self._beside else name
        return near if self._folder.exists(near) else name

    def _own_config(self) -> dict[str, Value] | None:
        """config.json beside the model, or what nemoconv wrote into it; None if there is neither."""
        beside = told = None
        where = f"{self.onnx.file.path}: {CONFIG}"
        if self._folder.exists(self._at(_CONFIG_FILE)):
            file = self._folder.file(self._at(_CONFIG_FILE))
            beside = parse_config(file.pread(file.size, 0), file.path)
        if CONFIG in self.onnx.metadata:
            told = parse_config(self.onnx.metadata[CONFIG].encode(), where)
        if beside is not None and told is not None and beside != told:
            raise CorruptCheckpoint(
                f"{where} differs from {_CONFIG_FILE} beside it",
                hint="say with --config which of the two is meant",
            )
        return beside if beside is not None else told

    def _bind(self) -> None:
        """Find the names."""
        self.raw = {
            name: held.stored()
            for name, held in self.onnx.initializers.items()
            if held.type.dtype is not None
        }
        self._named: RecoveredTensors | None = None
        self._problem: UnsupportedError | None = None
        try:
            if self._config is None:
                raise UnsupportedArchitecture(
                    f"{self.path}: has no {_CONFIG_FILE}, and an ONNX graph does not say what model it is",
                    hint="pass --config with the model's config.json; --to safetensors needs none",
                )
            table = table_for(self._config, str(self.path))
            self._named = recover(
                self.onnx, table, self._config, approximate=self._approximate, dtype=self._dtype
            )
        except UnsupportedError as error:
            self._problem = error
        self._tensors = self._named.tensors if self._named is not None else self.raw

    def decode_as(self, dtype: DType | None) -> None:
        if dtype != self._dtype:
            self._dtype = dtype
            self._bind()

    def notes(self) -> Sequence[str]:
        named = self._named
        if named is None:
            return ()
        notes = [f"tensor names found by {named.how}"]
        if named.decoded:
            notes.append(f"LOSSY: {len(named.decoded)} quantized weights are only approximations: "
                         f"{some(named.decoded, 3)}")  # fmt: skip
        if named.folded:
            notes.append(
                f"LOSSY: 1 is taken off {len(named.folded)} norms, which may be off by "
                f"{max(named.folded.values()):.1g}: {some(named.folded, 3)}"
            )
        if named.left:
            notes.append(f"{len(named.left)} constants of the graph are not weights: {some(named.left, 3)}")
        return notes

    @property
    def config(self) -> Mapping[str, Value]:
        return self._config or {}

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        if self._problem is not None:
            raise self._problem
        assert self._config is not None
        table = table_for(self._config, str(self.path))
        config, passed = read_config(table.fields, self._config, allow_ignored)
        files: dict[str, SourceFile | bytes] = dict(self.tokenizer_files)
        if self._folder.exists(self._at(GENERATION_CONFIG)):
            file = files[GENERATION_CONFIG] = self._folder.file(self._at(GENERATION_CONFIG))
            plain_json.loads(file.pread(file.size, 0), file.path)
        beside = {name: self._at(name) for name in table.files}
        files |= {name: self._folder.file(at) for name, at in beside.items() if self._folder.exists(at)}
        inert, notes = unowned.carried(self._config, passed), unowned.notes(self._config, passed)
        ignored = sorted(key for key in allow_ignored if key in self._config)
        return Model(table, config, inert, files, ignored, notes=notes)

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return {
            name: self._folder.file(self._at(name))
            for name in TOKENIZER_FILES
            if self._folder.exists(self._at(name))
        }

    def plain(self) -> Mapping[str, StoredTensor]:
        for kind, names in self.unconverted().items():
            raise UnsupportedError(
                f"{self.onnx.file.path}: safetensors cannot hold {kind}: {some(names, 5)}",
                hint="with --config, --to hf --dequantize decodes quantized weights",
            )
        return self.raw

    def unconverted(self) -> dict[str, list[str]]:
        """Initializers of types that no tensor here has, by type, and other parts that hold numbers."""
        found: dict[str, list[str]] = {}
        for name, held in self.onnx.initializers.items():
            if held.type.dtype is None:
                found.setdefault(held.type.name, []).append(name)
        for kind in ("sparse initializers", "sub-graphs"):
            if kind in self.onnx.parts:
                found[kind] = list(self.onnx.parts[kind])
        return found

    def describe(self) -> dict[str, Value]:
        onnx = self.onnx
        operations: dict[str, int] = {}
        for node in onnx.nodes:
            name = f"{node.domain}.{node.op}" if node.domain else node.op
            operations[name] = operations.get(name, 0) + 1
        files = {onnx.file.name: onnx.file.size}
        for held in onnx.initializers.values():
            if held.external and held.file is not None:
                files[held.file.name] = held.file.size
        described: dict[str, Value] = {
            "writer": onnx.producer or "(not recorded)",
            "ir version": onnx.ir_version,
            "opsets": dict(onnx.opsets),
            "inputs": {value.name: str(value) for value in onnx.inputs},
            "outputs": {value.name: str(value) for value in onnx.outputs},
            "operations": dict(sorted(operations.items(), key=lambda item: (-item[1], item[0]))),
            "external data": sorted(name for name in files if name != onnx.file.name),
            "files": files,
        }
        if self._named is not None:
            described["names"] = f"found by {self._named.how}"
        if self.unconverted():
            described["not converted"] = {kind: some(names, 5) for kind, names in self.unconverted().items()}
        if onnx.metadata:
            described["metadata"] = {
                key: value if len(value) < 80 else f"{len(value):,} characters"
                for key, value in sorted(onnx.metadata.items())
            }
        return described

    def open_folder(self) -> SourceDir | None:
        return SourceDir(self.path) if self.path.is_dir() else None

    def close(self) -> None:
        self._folder.close()


def _first_of(root: Path, names: list[str]) -> str | None:
    """The graph to begin with, of ``names`` in a directory, if they are one model that nemoconv wrote."""
    if _FIRST_GRAPH not in names:
        return None
    folder = SourceDir(root)
    try:
        return _FIRST_GRAPH if FILES in read_onnx(folder, _FIRST_GRAPH).metadata else None
    finally:
        folder.close()


def _whole(folder: Folder, onnx: OnnxFile, beside: str) -> OnnxFile:
    """``onnx`` with what the other graphs of its model hold; itself, where it is the only one.

    Raises CorruptCheckpoint for graphs that do not belong together.
    """
    names = onnx.metadata.get(FILES, "").split()
    own = onnx.file.name.rpartition("/")[2]
    if not names:
        return onnx
    if own not in names or len(names) > _MOST_GRAPHS or len(set(names)) != len(names):
        raise CorruptCheckpoint(
            f"{onnx.file.path}: {FILES} is {' '.join(names)!r}, which does not name this file"
        )
    for name in names:
        if name == own:
            continue
        other = read_onnx(folder, f"{beside}/{name}" if beside else name, beside)
        if any(
            other.metadata.get(key) != onnx.metadata.get(key) for key in {*other.metadata, *onnx.metadata}
        ):
            raise CorruptCheckpoint(
                f"{other.file.path}: says of itself what {own} does not",
                hint="graphs of two models seem to be mixed",
            )
        onnx = _joined(onnx, other)
    return onnx


def _joined(onnx: OnnxFile, other: OnnxFile) -> OnnxFile:
    initializers = dict(onnx.initializers)
    for name, held in other.initializers.items():
        if not held.external:
            continue  # constants of a graph, whose names each graph counts for itself
        known = initializers.setdefault(name, held)
        if _place(known) != _place(held):
            raise CorruptCheckpoint(f"{other.file.path}: {name!r} lies elsewhere than {onnx.file.name} says")
    return replace(
        onnx,
        inputs=(*onnx.inputs, *other.inputs),
        outputs=(*onnx.outputs, *other.outputs),
        nodes=(*onnx.nodes, *other.nodes),
        initializers=initializers,
    )


def _place(held: Initializer) -> tuple[object, ...]:
    return (
        held.file.name if held.file else None,
        held.offset,
        held.nbytes,
        held.shape,
        held.type,
        held.external,
    )
