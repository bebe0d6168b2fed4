"""A folder of safetensors that was made of a ``.nemo``: the weights under NeMo's names, model_config.yaml,
and the archive's other members in ``artifacts/``. It becomes the same archive again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import CorruptCheckpoint
from ...formats.text import plain_json
from ...mappings.hf.fields import Value
from ...mappings.identity import identity_table
from ...stores.files import SourceDir, SourceFile
from ..base import HeldTensors
from ..hf.checkpoint import read_shards
from . import archive as nemo_archive
from .model import ARTIFACTS, NULLS, ArchiveModel


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
