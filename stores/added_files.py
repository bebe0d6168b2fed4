"""Files added to a directory that exists: all of them or none."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .output import _FOLDER, OutputDirectory, _swap, _sync_folder, reported


def check_absent(directory: Path, names: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Raise OutputError where one of ``names`` is there already, or cannot be replaced."""
    for name in names:
        place = directory / name
        if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
            raise OutputError(f"{place}: exists and is not a regular file", hint="remove it")
        if os.path.lexists(place) and not overwrite:
            raise OutputError(f"{place}: exists already", hint="pass --overwrite to replace it")


def add_files(directory: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Write ``files`` into ``directory``, the last one last, and flush them to the disk.

    When that fails, the directory is what it was before. They are staged in a folder named after the last
    one: a graph that a killed run leaves there does not find its weights. Raises OutputError.
    """
    with reported(directory), _locked(directory):
        check_absent(directory, files, overwrite=overwrite)
        stage = directory / f".{list(files)[-1]}.incomplete"
        staged = {name: stage / name for name in files}
        placed: list[str] = []
        try:
            if os.path.lexists(stage):  # of a run that was killed
                OutputDirectory._remove(stage)
            stage.mkdir()
            for name, data in files.items():
                _write(staged[name], data)
            for name, path in staged.items():
                _put(path, directory / name)
                placed.append(name)
            _sync_folder(directory)
        except BaseException:
            with suppress(OSError):
                for name in reversed(placed):
                    _put(directory / name, staged[name])
            raise
        finally:
            with suppress(OSError):  # what failed, or what was replaced
                OutputDirectory._remove(stage)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = os.open(directory, _FOLDER & ~os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise OutputError(f"{directory}: another run is writing it", hint="wait for it") from None
        yield
    finally:
        os.close(lock)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``; what had it has the source's name afterwards."""
    if os.path.lexists(target):
        aside = _swap(source, target)
        if aside != source:
            os.rename(aside, source)
    else:
        os.rename(source, target)
