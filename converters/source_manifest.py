"""A source's own manifest is believed or contradicted, never passed over.

Where tensors, or what frames them, are not what the manifest says, nothing is converted: a shard of another
model, a flipped bit. What frames is compared before a byte is written, tensors while they are read. A config
or a tokenizer that somebody edited is taken as it is, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import CorruptCheckpoint, some
from ..stores.files import Folder, SourceDir, SourceFile
from ..tensors.byte_source import ByteSource
from ..tensors.checksum import crc32
from . import manifest
from .abilities import Filed, folder_of
from .base import Checkpoint

if TYPE_CHECKING:
    from .format import Format, Options
    from .run.plan import Conversion

_BLOCK: Final = 4 << 20
#: endings of files that hold weights or say where they lie; all others are configs and tokenizers
_WEIGHTS: Final = (
    ".safetensors",
    ".safetensors.index.json",
    ".distcp",
    ".metadata",
    "metadata.json",
    ".pt",
    ".ckpt",
    ".onnx",
    ".onnx.data",
)
_HINT: Final = (
    f"copy the checkpoint again; if it was changed on purpose, remove its {manifest.NAME} "
    "or pass --ignore-manifest"
)
#: what the report says when nothing was compared
IGNORED: Final = f"{manifest.NAME} of the source was not compared, as --ignore-manifest asks"


@contextmanager
def opened(
    form: Format, path: Path, options: Options, *, ignore: bool
) -> Iterator[tuple[Checkpoint, SourceManifest | _Nothing]]:
    """An open checkpoint and what its manifest says of it; ``ignore`` goes on as if there were none.

    Raises what opening raises, and CorruptCheckpoint for a manifest that is none.
    """
    with (
        manifest.disregarded(path) if ignore else nullcontext(),
        form.open(path, options) as source,
    ):
        told = None if ignore else read(source)
        if told is None:
            there = ignore and any(
                (place / manifest.NAME).exists() for place in (source.path, source.path.parent)
            )
            yield source, _Nothing([IGNORED] if there else [])
            return
        with closing(told.folder):
            yield source, told


@dataclass(frozen=True, slots=True)
class _Nothing:
    """No manifest, or one that is not to be believed."""

    notes: list[str]

    def compare(self, conversion: Conversion) -> None:
        """Say in the report what was not compared."""
        conversion.report.notes.extend(self.notes)
        if self.notes:
            conversion.header["ignored_manifest"] = True


@dataclass(slots=True)
class SourceManifest:
    """The manifest of an open source, and which of its files are being compared with it."""

    folder: Folder
    files: Mapping[str, Mapping[str, Any]]
    #: False for a file beside a manifest, which need not be of the checkpoint that it describes
    whole: bool = True
    _told: set[int] = field(default_factory=set)

    def compare(self, conversion: Conversion) -> None:
        """Compare what headers show, have the rest compared while it is read, and note edited configs."""
        self.expect(conversion.plan.sources())
        conversion.report.notes.extend(self.check_files())

    def expect(self, sources: Iterable[ByteSource]) -> None:
        """Have these files compared with the manifest while they are read.

        Raises CorruptCheckpoint for what their headers show: another size, another frame, a file that the
        manifest does not know.
        """
        for file in sources:
            if id(file) in self._told or not isinstance(file, SourceFile):
                continue
            self._told.add(id(file))
            entry = self.files.get(file.name)
            if entry is not None:
                self._expect(file, entry)
            elif self.whole and file.name.endswith(_WEIGHTS):
                raise CorruptCheckpoint(
                    f"{file.path}: {manifest.NAME} knows no file of that name: it is of another checkpoint",
                    hint=_HINT,
                )

    @staticmethod
    def _expect(file: SourceFile, entry: Mapping[str, Any]) -> None:
        rows = entry.get("tensors", [])
        if not rows and not file.name.endswith(_WEIGHTS):
            return
        if wrong := _frame(file, entry):
            raise CorruptCheckpoint(f"{file.path}: {wrong}", hint=_HINT)
        for name, offset, nbytes, checksum in rows:
            file.expect(offset, nbytes, int(checksum, 16), name, f"stands in {manifest.NAME}")

    def check_files(self) -> list[str]:
        """Compare what is no tensor in all files of the manifest; notes on configs that were edited.

        Raises CorruptCheckpoint for what frames tensors.
        """
        edited, gone = [], []
        for name, entry in self.files.items():
            if not self.folder.exists(name):
                gone.append(name)
                continue
            file = self.folder.file(name)
            wrong = _frame(file, entry)
            if wrong and (entry.get("tensors") or name.endswith(_WEIGHTS)):
                raise CorruptCheckpoint(f"{file.path}: {wrong}", hint=_HINT)
            if wrong:
                edited.append(name)
        notes = []
        if edited:
            notes.append(f"not as {manifest.NAME} says, and taken as they are: {some(edited)}")
        if gone:
            notes.append(f"in {manifest.NAME}, but not there: {some(gone)}")
        return notes


def read(source: Checkpoint) -> SourceManifest | None:
    """The manifest of an open checkpoint, None without one. Raises CorruptCheckpoint for a broken one."""
    folder, whole = folder_of(source) if source.path.is_dir() or isinstance(source, Filed) else None, True
    if folder is None and Path(source.path).is_file():
        folder, whole = SourceDir(Path(source.path).parent), False
    written = manifest.read(folder) if folder is not None else None
    if folder is None or written is None:
        if folder is not None:
            folder.close()
        return None
    return SourceManifest(folder, written["files"], whole)


def _frame(file: SourceFile, entry: Mapping[str, Any]) -> str:
    """What is wrong with the size of a file or with what lies around its tensors."""
    if file.size != entry["size"]:
        return f"has {file.size:,} bytes, {manifest.NAME} says {entry['size']:,}"
    found = 0
    for offset, nbytes in manifest.gaps(entry.get("tensors", []), file.size):
        for at in range(offset, offset + nbytes, _BLOCK):
            found = crc32(file.pread(min(_BLOCK, offset + nbytes - at), at), found)
    if f"{found:08x}" != entry["crc32"]:
        return f"what is not tensors has checksum {found:08x}, {manifest.NAME} says {entry['crc32']}"
    return ""
