"""A ``.nemo`` archive of any model but a Megatron language model: speech, speaker, audio, TTS.

Its tensors can always be read, and moved as they are between archives and safetensors. Those of known
speech classes have a table besides, under which Hugging Face sees them (:class:`SpeechView`). A folder of
safetensors that was made of an archive has the weights under NeMo's names, model_config.yaml, and the other
members in ``artifacts/``; it becomes the same archive again (:class:`NemoTensors`).

Source: nemo/core/connectors/save_restore_connector.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsupportedArchitecture,
    UnsupportedError,
    UnsupportedFormat,
    UsageError,
)
from ...formats.tar import TarFolder
from ...formats.text import plain_json
from ...mappings import architectures, load_table
from ...mappings.families.speech import ArchiveOnly, SpeechTable, flatten, read_settings
from ...mappings.families.speech_preprocessor import PATHS as PREPROCESSOR_PATHS
from ...mappings.families.speech_preprocessor import read_extractor
from ...mappings.hf.fields import Value
from ...mappings.table import Part, Rule, Table
from ...stores.files import Folder, SourceDir, SourceFile
from ...tensors.stored import StoredTensor
from ..base import Checkpoint, HeldTensors, Model, Piece, TensorSpec
from ..hf.checkpoint import read_shards
from . import archive as nemo_archive
from . import speech_files
from .weights import read_weights


class IdentityTable(Table):
    """A table made for one checkpoint: every tensor as it is, under its own name. ``architecture`` is NeMo's
    class."""

    __slots__ = ()


def identity_table(target: str, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> IdentityTable:
    """The table of tensors with these names and shapes, of a model of class ``target``.

    For models that have no counterpart elsewhere, and for moves between containers of the same names. It lets
    the engine move, cast, check and verify them like any other model.
    """
    rules, sizes = [], {"layers": 1, "vocab": 1, "true_vocab": 1}
    for name, shape in tensors:
        factors = {f"axis{position}_{length}": length for position, length in enumerate(shape)}
        sizes |= factors
        # names come out of the checkpoint: their braces are no holes
        plain = name.replace("{", "{{").replace("}", "}}")
        rules.append(Rule(plain, " ".join(factors), (Part(plain, " ".join(factors)),)))
    module, _, model = target.rpartition(".")
    return IdentityTable(
        architecture=model or "unknown",
        hf_class="",
        fields=(),
        rules=tuple(rules),
        nemo=ArchiveOnly(module, model, "", {}),
        sizes=partial(_sizes, sizes),
    )


def _sizes(sizes: Mapping[str, int], _config: Mapping[str, Value]) -> dict[str, int]:
    return dict(sizes)


#: of a folder of safetensors: where an archive's other members lie, and what names stand for None
ARTIFACTS: Final = "artifacts"
NULLS: Final = "empty_entries.json"
#: formats that keep NeMo's names, into which tensors go as they are
SAME_NAMES: Final = ("nemo", "safetensors")
#: of a hybrid model: section and names of the head that is not asked for
_OTHER_HEAD: Final = {"transducer": ("ctc_decoder.",), "ctc": ("decoder.", "joint.")}
_HYBRID: Final = "aux_ctc"


@dataclass(slots=True)
class ArchiveModel(Model):
    """A model whose archive goes along: model_config.yaml as it is, artifacts by their member names, and
    the names in the state dict that stand for None."""

    yaml: bytes = b""
    artifacts: dict[str, SourceFile] = field(default_factory=dict)
    nulls: tuple[str, ...] = ()


class NemoModel(HeldTensors):
    """An open ``.nemo`` of a model that is not a Megatron language model, under NeMo's own names."""

    format = "nemo"
    side = "nemo"
    has_model = False  # one that others share, that is: see SpeechView

    def __init__(
        self, path: Path, folder: Folder, config: Mapping[str, Value], *, head: str | None = None
    ) -> None:
        self.path, self.folder, self._config = path, folder, config
        if head is not None and _HYBRID not in config:
            raise UsageError(f"{path}: has one head only, so none can be chosen")
        target = config.get("target")
        #: the full name of NeMo's class; a text, never imported
        self.target: str = target if isinstance(target, str) else ""
        self._head = head
        self._weights = read_weights(folder, self.target)
        self._tensors, self.nulls = self._weights.tensors, self._weights.nulls

    @property
    def config(self) -> Mapping[str, Value]:
        """model_config.yaml, not a config.json: most of these models have none."""
        return self._config

    def joins(self, name: str) -> bool:
        """Not in the folders of several ranks, whose names the tensors' begin with: what lies there may be
        a piece, a replica or a whole."""
        return len(self._weights.ranks) <= 1

    def pieces(self, name: str) -> Sequence[Piece]:
        rank = self._weights.ranks.get(name.partition("/")[0]) if not self.joins(name) else None
        return [Piece(name, rank, self._tensors[name])]

    def check_whole(self) -> None:
        """Raise UnsupportedFormat for weights that lie in pieces."""
        if not self._weights.whole:
            raise UnsupportedFormat(
                f"{self.path}: the weights of a {self.target or 'model of an unnamed class'} in "
                f"{len(self._weights.files)} files, which nothing here knows how to join",
                hint="convert --to safetensors to have them as they are",
            )

    def model(self, allow_ignored: Sequence[str] = ()) -> ArchiveModel:
        self.check_whole()
        table = identity_table(self.target, ((name, t.shape) for name, t in self._tensors.items()))
        return ArchiveModel(
            table,
            {},
            yaml=self.folder.read(nemo_archive.CONFIG),
            artifacts=self.artifacts(),
            nulls=self.nulls,
        )

    def artifacts(self) -> dict[str, SourceFile]:
        """Every member that is neither the config nor the weights, nor a manifest of ours."""
        ours = {nemo_archive.CONFIG, *self._weights.files, "nemoconv_manifest.json"}
        return {
            name: self.folder.file(name) for name in nemo_archive.all_files(self.folder) if name not in ours
        }

    def view_for(self, name: str) -> Checkpoint:
        return self if name in SAME_NAMES else SpeechView(self)

    def view_beside(self, other: Checkpoint) -> Checkpoint:
        if _HYBRID in self._config and self._head is None and other.format not in SAME_NAMES:
            for head in _OTHER_HEAD:  # the one that the other checkpoint has
                if self.table(head).architecture == other.config.get("model_type"):
                    self._head = head
        return self.view_for(other.format)

    def table(self, head: str | None = None) -> SpeechTable:
        """The table of a known speech class, of ``head`` or the head chosen before.

        Raises UnsupportedArchitecture.
        """
        flat = dict(flatten(self._config))
        head = head or self.head
        for name in architectures():
            try:
                table = load_table(name)
            except NemoconvError:  # a broken plug-in stops nobody else
                continue
            if isinstance(table, SpeechTable) and table.fits(self.target, head, flat):
                return table
        raise UnsupportedArchitecture(
            f"{self.path}: NeMo's class {self.target or '(not named)'} has no counterpart in transformers",
            hint="convert --to safetensors to have its weights and config",
        )

    @property
    def head(self) -> str | None:
        """The head of a hybrid model that is converted: the transducer unless another was chosen."""
        return (self._head or "transducer") if _HYBRID in self._config else None

    def describe(self) -> dict[str, Value]:
        facts: dict[str, Value] = {
            "writer": f"NeMo {self._config.get('nemo_version', '(version not recorded)')}",
            "target": self.target or "(not named)",
        }
        rate = self._config.get("sample_rate")
        if isinstance(rate, int):
            facts["sample rate"] = rate
        sections = {
            key: value["_target_"].rpartition(".")[2]
            for key, value in self._config.items()
            if isinstance(value, dict) and isinstance(value.get("_target_"), str)
        }
        if sections:
            facts["modules"] = sections
        if self.nulls:
            facts["empty entries"] = len(self.nulls)
        if self._weights.skipped:
            facts["other contents"] = dict(self._weights.skipped)
        facts["files"] = {name: self.folder.file(name).size for name in nemo_archive.all_files(self.folder)}
        return facts

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return speech_files.tokenizer_files(self.folder, self._config)

    def skipped(self) -> Mapping[str, int]:
        return self._weights.skipped

    def notes(self) -> Sequence[str]:
        if isinstance(self.folder, TarFolder) and self.folder.compressed:
            return ("the archive is compressed, so it was inflated into a scratch file first",)
        return ()

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        yield from self._weights.checksums()

    def open_folder(self) -> Folder | None:
        compressed = isinstance(self.folder, TarFolder) and self.folder.compressed  # never by us
        return None if compressed else nemo_archive.open_folder(self.path)

    def plain_files(self) -> Mapping[str, SourceFile | bytes]:
        # a config beside the tensors says that they are one state dict, which becomes an archive again
        place = nemo_archive.CONFIG if self._weights.whole else f"{ARTIFACTS}/{nemo_archive.CONFIG}"
        files: dict[str, SourceFile | bytes] = {place: self.folder.file(nemo_archive.CONFIG)}
        files |= {f"{ARTIFACTS}/{name}": file for name, file in self.artifacts().items()}
        if self.nulls:
            files[NULLS] = plain_json.dumps(list(self.nulls))
        return files

    def close(self) -> None:
        self.folder.close()


class SpeechView(Checkpoint):
    """The same archive as Hugging Face sees it: one head, under the table of its architecture."""

    format = "nemo"
    side = "nemo"

    def __init__(self, whole: NemoModel) -> None:
        self.path, self._whole, self._table = whole.path, whole, whole.table()
        dropped = _OTHER_HEAD[whole.head] if whole.head else ()
        self._names = [name for name in whole.keys() if not name.startswith(dropped)]  # noqa: SIM118
        self._dropped = len(whole.keys()) - len(self._names)

    def keys(self) -> Sequence[str]:
        return self._names

    def spec(self, name: str) -> TensorSpec:
        return self._whole.spec(name)

    def stored(self, name: str) -> StoredTensor:
        return self._whole.stored(name)

    @property
    def config(self) -> Mapping[str, Value]:
        return self._whole.config

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        self._whole.check_whole()
        yaml = dict(flatten(self._of_head()))
        own = {path: value for path, value in yaml.items() if path not in PREPROCESSOR_PATHS}
        config = read_settings(self._table.settings, own, allow_ignored)
        self._table.sizes(config)
        extractor = read_extractor(yaml)
        speech_files.check_constants(self._whole, self._table, config, extractor)
        inert, files = speech_files.to_hf(self._whole.folder, self.config, self._table, config, extractor)
        ignored = sorted({path for path in allow_ignored if path in yaml or path in self.config})
        return Model(self._table, config, inert, files, ignored)

    def _of_head(self) -> dict[str, Any]:
        """model_config.yaml as a model with only this head would have it."""
        config = {key: value for key, value in self.config.items() if key != _HYBRID}
        if self._whole.head != "ctc":
            return config
        auxiliary = self.config.get(_HYBRID)
        decoder = auxiliary.get("decoder") if isinstance(auxiliary, dict) else None
        if not isinstance(decoder, dict):
            raise UnsupportedError(f"{self.path}: {_HYBRID} describes no decoder")
        return {**{k: v for k, v in config.items() if k not in ("joint", "labels")}, "decoder": decoder}

    def view_for(self, name: str) -> Checkpoint:
        return self._whole if name in SAME_NAMES else self

    def describe(self) -> dict[str, Value]:
        return self._whole.describe()

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return self._whole.tokenizer_files

    def skipped(self) -> Mapping[str, int]:
        other = "CTC" if self._whole.head == "transducer" else "transducer"
        dropped = {f"tensors of the {other} head (choose it with --head)": self._dropped}
        return {**self._whole.skipped(), **(dropped if self._dropped else {})}

    def notes(self) -> Sequence[str]:
        return self._whole.notes()

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        yield from self._whole.verify_checksums()

    def open_folder(self) -> Folder | None:
        return self._whole.open_folder()

    def close(self) -> None:
        self._whole.close()


class NemoTensors(HeldTensors):
    """An open folder with model_config.yaml and safetensors."""

    format = "safetensors"
    side = "nemo"
    has_model = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = SourceDir(path)
        self._config = nemo_archive.read_config(self._folder)
        target = self._config.get("target")
        self.target: str = target if isinstance(target, str) else ""
        self._tensors = read_shards(self._folder)
        self._nulls = self._read_nulls()

    def _read_nulls(self) -> tuple[str, ...]:
        if not self._folder.exists(NULLS):
            return ()
        names = plain_json.loads(self._folder.read(NULLS), str(self.path / NULLS))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CorruptCheckpoint(f"{self.path / NULLS}: is no list of names")
        if len(set(names)) != len(names) or self._tensors.keys() & set(names):
            raise CorruptCheckpoint(f"{self.path / NULLS}: names an entry twice, or a tensor")
        return tuple(names)

    @property
    def config(self) -> Mapping[str, Value]:
        return self._config

    def model(self, allow_ignored: Sequence[str] = ()) -> ArchiveModel:
        table = identity_table(self.target, ((name, t.shape) for name, t in self._tensors.items()))
        return ArchiveModel(
            table,
            {},
            yaml=self._folder.read(nemo_archive.CONFIG),
            artifacts=dict(self._artifacts()),
            nulls=self._nulls,
        )

    def _artifacts(self) -> Iterator[tuple[str, SourceFile]]:
        for name in nemo_archive.all_files(self._folder, ARTIFACTS):
            yield name.removeprefix(ARTIFACTS + "/"), self._folder.file(name)

    def plain_files(self) -> Mapping[str, SourceFile | bytes]:
        names = [nemo_archive.CONFIG, *nemo_archive.all_files(self._folder, ARTIFACTS)]
        names += [NULLS] if self._nulls else []
        return {name: self._folder.file(name) for name in names}

    def describe(self) -> dict[str, Value]:
        return {
            "writer": f"NeMo {self._config.get('nemo_version', '(version not recorded)')}",
            "target": self.target or "(not named)",
            "files": {file.name: file.size for file in self._folder.opened()},
        }

    def close(self) -> None:
        self._folder.close()
