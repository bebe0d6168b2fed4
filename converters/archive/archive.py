"""A ``.nemo`` file: a tar archive, or the folder it was unpacked into, of a config, weights and artifacts.

What is common to all models in it; what the model is, others know. Source:
nemo/core/connectors/save_restore_connector.py of NeMo 1.0 to 3.0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint
from ...formats.tar import GZIP_MAGIC, TarFolder
from ...formats.text import plain_yaml
from ...stores.files import Folder, SourceDir, SourceFile

CONFIG: Final = "model_config.yaml"
WEIGHTS: Final = "model_weights.ckpt"
#: begins a config value that is the name of a member
ARTIFACT: Final = "nemo:"
_TAR_MAGIC: Final = b"ustar"
_MAX_DEPTH: Final = 64
_MAX_FOLDERS: Final = 16
_MAX_STEPS: Final = 10_000
#: ``${a.b}`` from the top, ``${.b}`` from the same mapping, ``${..b}`` from the one around it
_REFERENCE: Final = re.compile(r"\$\{(\.*)([\w-]+(?:\.[\w-]+)*)\}")


def looks_like_archive(path: Path) -> bool:
    """Whether a file is a tar or gzip archive by its first bytes, or is called ``*.nemo``."""
    if not path.is_file():
        return False
    if path.suffix == ".nemo":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return False
    return start[257:262] == _TAR_MAGIC or (start.startswith(GZIP_MAGIC) and ".tar" in path.name)


def open_folder(path: Path) -> Folder:
    """The members of an archive, or the files of an unpacked one."""
    return SourceDir(path) if path.is_dir() else TarFolder(path)


def peek(path: Path) -> Mapping[str, Any] | None:
    """The config of what may be a ``.nemo``; None if it is none. A gzip archive is inflated for it once,
    and :func:`take` gives the inflated one to whoever opens it next."""
    if path.is_dir():
        return _Peeked.look(path) if (path / CONFIG).is_file() else None
    return _Peeked.look(path) if looks_like_archive(path) else None


def take(path: Path) -> tuple[Folder, dict[str, Any]]:
    """Open a ``.nemo`` and read its config."""
    folder = _Peeked.taken(path) or open_folder(path)
    try:
        return folder, read_config(folder)
    except BaseException:
        folder.close()
        raise


class _Peeked:
    """The archive that was looked into last, kept open for the one who takes it."""

    key: tuple[str, int, int] | None = None
    folder: Folder | None = None

    @classmethod
    def look(cls, path: Path) -> Mapping[str, Any]:
        folder = cls.taken(path) or open_folder(path)
        status = path.stat()
        cls.drop()
        cls.key, cls.folder = (str(path.resolve()), status.st_mtime_ns, status.st_size), folder
        return read_config(folder)

    @classmethod
    def taken(cls, path: Path) -> Folder | None:
        status = path.stat()
        if cls.folder is None or cls.key != (str(path.resolve()), status.st_mtime_ns, status.st_size):
            return None
        folder, cls.folder = cls.folder, None
        return folder

    @classmethod
    def drop(cls) -> None:
        if cls.folder is not None:
            cls.folder.close()
            cls.folder = None


def all_files(folder: Folder, under: str = "", depth: int = 0) -> Iterator[str]:
    """Names of the files in ``under`` and in all folders below it."""
    if depth > _MAX_FOLDERS:
        raise UnsafeCheckpoint(f"{folder.path}: folders nested deeper than {_MAX_FOLDERS} levels")
    yield from folder.names(under)
    for inner in folder.folders(under):
        yield from all_files(folder, inner, depth + 1)


def read_config(folder: Folder) -> dict[str, Any]:
    """``model_config.yaml``, without a ``model:`` around it, its references resolved.

    Raises CorruptCheckpoint where it is missing or refers to nothing.
    """
    where = f"{folder.path}: {CONFIG}"
    if not folder.exists(CONFIG):
        raise CorruptCheckpoint(
            f"{folder.path}: has no {CONFIG}", hint="a .nemo archive has one; is this another kind of file?"
        )
    config = plain_yaml.loads_mapping(folder.read(CONFIG), where)
    inner = config.get("model")
    return resolve(inner if isinstance(inner, dict) else config, where)


def resolve(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``config`` with OmegaConf's references to other values replaced by them. What only a resolver
    could tell (``${oc.env:HOME}``) stays text."""
    resolver = _Resolver(config, where)
    resolved: dict[str, Any] = resolver.value(config, (), 0)
    return resolved


class _Resolver:
    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where, self._steps = config, where, 0

    def value(self, value: Any, place: tuple[Any, ...], depth: int) -> Any:
        """``value``, found at ``place``, with references in it replaced."""
        self._steps += 1
        if depth > _MAX_DEPTH:
            raise UnsafeCheckpoint(f"{self._where}: references that lead in circles, or too deep")
        if isinstance(value, dict):
            return {key: self.value(item, (*place, key), depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, (*place, i), depth) for i, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._target(whole, place, depth)
        return _REFERENCE.sub(lambda match: str(self._target(match, place, depth)), value)

    def _target(self, match: re.Match[str], place: tuple[Any, ...], depth: int) -> Any:
        if self._steps > _MAX_STEPS:
            raise UnsafeCheckpoint(f"{self._where}: more than {_MAX_STEPS:,} references")
        around = place[: len(place) - len(match[1])] if match[1] else ()
        found: Any = self._config
        names = (*around, *match[2].split("."))
        for name in names:
            if isinstance(found, list) and str(name).isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise CorruptCheckpoint(f"{self._where}: {match[0]} refers to nothing")
        return self.value(found, names, depth + 1)


def artifact(folder: Folder, value: object) -> SourceFile | None:
    """The member that a config value (``nemo:<hash>_tokenizer.model``) names; None if it names none.

    A path of the machine that wrote the config is never looked at: where the archive holds a file of
    that name (NeMo's fallback too), that one is meant. Raises UnsafeCheckpoint for a name with a folder.
    """
    if not isinstance(value, str) or not value:
        return None
    if value.startswith(ARTIFACT):
        name = value[len(ARTIFACT) :]
        if "/" in name or "\\" in name:
            raise UnsafeCheckpoint(f"{folder.path}: {CONFIG} names the artifact {name[:200]!r}, a path")
        return folder.file(name)
    name = value.replace("\\", "/").rpartition("/")[2]
    return folder.file(name) if name and name != ".." and folder.exists(name) else None


def original_name(name: str) -> str:
    """The name of a member without the hashes that NeMo puts before it, one each time it was saved."""
    return re.sub(r"^(?:[0-9a-f]{32}_)+", "", name)


def artifact_name(name: str, data: bytes) -> str:
    """A member's name as NeMo makes it, with a hash of the content where NeMo has a random number."""
    return f"{hashlib.sha256(data).hexdigest()[:32]}_{name}"
