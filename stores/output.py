"""An output directory that appears whole or not at all.

Everything is written to ``.<name>.incomplete/<name>`` beside the target, on the same file system, under
a lock. :meth:`OutputDirectory.commit` flushes files and folders to the disk and then moves it up. One
folder deeper, so that what a killed run leaves beside the target is no checkpoint, not even in the
moment between the last file and the rename; the next run removes it.

:func:`add_files` does the same for a few files that are added to a directory that exists.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ..errors import OutputError, UsageError

#: for calls of the C library that Python does not offer
_LIBC = ctypes.CDLL(None, use_errno=True)
_WHOLE = ctypes.c_int64(0)
_SYNC_FILE_RANGE_WRITE = 2
_IOV_MAX = 1024
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def reported(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the wrapped writes into an OutputError that names ``path``."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        hint = {
            errno.ENOSPC: "free space on that file system or choose another output",
            errno.EDQUOT: "your quota is used up; choose another output",
            errno.EACCES: "choose a directory that you may write to",
            errno.EROFS: "that file system is read-only; choose another output",
        }.get(error.errno or 0, "")
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})", hint=hint) from None


class OutputFile:
    """One file of the staged output, written by offset from any thread.

    There is no lock here: who moves many bytes gives a file to one writer, as the kernel lets only one in
    at a time and those that wait there spin.
    """

    __slots__ = ("_fd", "_pending", "adopted", "name", "path", "size")

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name, self.size = path, name, 0
        self.adopted = False
        self._fd: int | None = None
        self._pending: list[tuple[int, bytes]] = []

    @property
    def fd(self) -> int:
        if self._fd is None:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            flags |= 0 if self.adopted else os.O_CREAT | os.O_EXCL
            with reported(self.path):
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                self._fd = os.open(self.path, flags, 0o666)
        return self._fd

    @property
    def whole(self) -> OutputFile:
        """The file on the disk: this one, or the archive that this is a member of."""
        return self

    def adopt(self) -> None:
        """Go on with the file that another process has written and closed."""
        self.close()
        self.adopted = True

    def allocate(self) -> None:
        """Create the file at its final size, so that threads may write anywhere in it."""
        with reported(self.path):
            os.ftruncate(self.fd, self.size)

    def preallocate(self) -> None:
        """Give the file, at its final size, its blocks; from any thread, also while others write."""
        with reported(self.path):
            _preallocate(self.fd, self.size)

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data).cast("B")
        with reported(self.path):
            while view:
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done

    def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write views one after another from ``offset``."""
        for first in range(0, len(views), _IOV_MAX):
            group = views[first : first + _IOV_MAX]
            expected = sum(map(len, group))
            with reported(self.path):
                got = os.pwritev(self.fd, group, offset)
            if got < expected:  # rare: let pwrite finish, or find the error
                self.pwrite(b"".join(group)[got:], offset + got)
            offset += expected

    def start_write_back(self) -> None:
        """Ask the kernel to begin writing dirty pages to the disk, so that little is left for ``sync``."""
        if hasattr(_LIBC, "sync_file_range"):  # Linux; an error is not ours to report: sync will
            _LIBC.sync_file_range(self.fd, _WHOLE, _WHOLE, _SYNC_FILE_RANGE_WRITE)

    def pwrite_later(self, offset: int, data: bytes) -> None:
        """Remember ``data`` for :meth:`write_pending`: plans are made before anything is written."""
        self._pending.append((offset, data))

    def write_pending(self) -> None:
        for offset, data in self._pending:
            self.pwrite(data, offset)
        self._pending.clear()

    def read_back(self, offset: int = 0, nbytes: int | None = None) -> bytes:
        """What was written before: the whole of a small file, or a small part."""
        left = self.size if nbytes is None else nbytes
        parts = []
        with reported(self.path):
            while left:
                part = os.pread(self.fd, left, offset)
                if not part:
                    raise OutputError(
                        f"{self.path}: ended at byte {offset:,} while it was read back",
                        hint="was the file changed by another process?",
                    )
                parts.append(part)
                offset, left = offset + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sync(self) -> None:
        with reported(self.path):
            os.fsync(self.fd)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _preallocate(fd: int, size: int) -> None:
    """Give the file its blocks now: a full disk shows at once, and writing costs less.

    Not ``os.posix_fallocate``, which on file systems without support writes every block itself.
    """
    if not size or not hasattr(_LIBC, "fallocate"):
        return
    if _LIBC.fallocate(fd, 0, _WHOLE, ctypes.c_int64(size)) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(number, os.strerror(number))


class OutputDirectory:
    """The staged directory; use as a context manager, and :meth:`commit` at the end."""

    kind = "directory"

    def __init__(self, target: str | Path, *, overwrite: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        if not self.target.name:
            raise UsageError(f"{target}: not a name for an output {self.kind}")
        self.overwrite = overwrite
        #: begin with what a run before left, and leave what this one does not finish
        self.resume = self.keep = False
        self.stage = self.target.parent / f".{self.target.name}.incomplete"
        self._files: dict[str, OutputFile] = {}
        self._lock: int | None = None

    @property
    def staged(self) -> Path:
        """What becomes the target: a checkpoint by itself once everything is written."""
        return self.stage / self.target.name

    @staticmethod
    def _is_of_kind(path: Path) -> bool:
        return path.is_dir()

    def check(self, sources: tuple[Path, ...] = ()) -> None:
        """Refuse a target that exists or that would swallow its own source, before any work."""
        target = os.path.realpath(self.target)
        for source in sources:
            real = os.path.realpath(source)
            if target == real or target.startswith(real + os.sep) or real.startswith(target + os.sep):
                raise OutputError(
                    f"{self.target}: is the source, inside it or around it",
                    hint="choose another output",
                )
        if os.path.lexists(self.target):
            if os.path.islink(self.target) or not self._is_of_kind(self.target):
                raise OutputError(
                    f"{self.target}: exists and is not a {self.kind}", hint="choose another output"
                )
            if not self.overwrite:
                raise OutputError(f"{self.target}: exists already", hint="pass --overwrite to replace it")
        folder = self._existing_folder()
        if not folder.is_dir():
            raise OutputError(f"{folder}: is not a directory", hint="choose another output")

    def _existing_folder(self) -> Path:
        """The innermost thing above the target that is there."""
        folder = self.target.parent
        while not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        return folder

    def free_bytes(self) -> int:
        """Free bytes for us on the target's file system."""
        folder = self._existing_folder()
        with reported(folder):
            status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    def __enter__(self) -> OutputDirectory:
        try:
            with reported(self.stage):
                self.target.parent.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                # of a run that was killed; its lock died with it
                for left_over in () if self.resume else self.stage.iterdir():
                    self._remove(left_over)
        except BaseException:
            self._discard()
            raise
        return self

    def _take_lock(self) -> None:
        """Make the stage ours: the lock is on the directory itself, so nothing else is left behind."""
        while True:
            made = False
            with suppress(FileExistsError):
                self.stage.mkdir()
                made = True
            try:
                lock = os.open(self.stage, _FOLDER)
            except FileNotFoundError:  # its owner has just removed it
                continue
            except OSError:
                if made:
                    self.stage.rmdir()
                raise
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if error.errno == errno.EWOULDBLOCK:
                    raise OutputError(
                        f"{self.target}: another run is writing it",
                        hint="wait for it or choose another output",
                    ) from None
                if made:
                    self.stage.rmdir()
                raise
            # between our open and our lock its owner may have removed it
            with suppress(FileNotFoundError):
                if os.stat(self.stage).st_ino == os.fstat(lock).st_ino:
                    self._lock = lock
                    return
            os.close(lock)

    def file(self, name: str) -> OutputFile:
        """The staged file ``name``, created with its folder at its first write."""
        if name not in self._files:
            self._files[name] = OutputFile(str(self.staged / name), name)
        return self._files[name]

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole."""
        file = self.file(name)
        file.pwrite(data, 0)
        file.size = len(data)

    def files(self) -> dict[str, OutputFile]:
        """Every file asked for so far."""
        return dict(self._files)

    def complete(self) -> None:
        """Nothing more will be written: what is staged can now be read like the target."""

    def sync(self, progress: Callable[[], None] | None = None) -> None:
        """Flush every file and folder of the stage to the disk."""
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(OutputFile.sync, self._files.values()):
                if progress:
                    progress()
        for folder, _, _ in os.walk(self.stage, topdown=False):
            _sync_folder(folder)

    def close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def commit(self) -> None:
        """Make what is staged the target: after this returns, it is on the disk under its name.

        When that fails, the target is what it was before.
        """
        self.sync()
        self.close_files()
        old: Path | None = None
        with reported(self.target):
            if not os.path.lexists(self.target):
                self._appear()
            elif self.overwrite:
                old = _swap(self.staged, self.target)
            else:  # it appeared while we worked
                raise OutputError(f"{self.target}: exists already", hint="pass --overwrite to replace it")
        try:
            _sync_folder(self.target.parent)
        except BaseException:
            with suppress(OSError):  # nobody knows what the disk has: the old name is the safe one
                self._disappear(old)
            raise
        if old is not None:
            with suppress(OSError):  # what is left of it, the next run removes
                self._remove(old)
        self.keep = False
        self._discard()

    def _appear(self) -> None:
        """Give what is staged the target's name, which nothing may have."""
        if hasattr(_LIBC, "renameat2"):
            places = (_AT_FDCWD, os.fsencode(self.staged), _AT_FDCWD, os.fsencode(self.target))
            if _LIBC.renameat2(*places, _RENAME_NOREPLACE) == 0:
                return
            if ctypes.get_errno() == errno.EEXIST:  # it appeared this moment
                raise OutputError(f"{self.target}: exists already", hint="pass --overwrite to replace it")
        os.rename(self.staged, self.target)  # a file system without it

    def _disappear(self, old: Path | None) -> None:
        """Undo :meth:`_appear`, or the swap that put the target's former holder at ``old``."""
        if old == self.staged:
            _swap(old, self.target)
            return
        os.rename(self.target, self.staged)
        if old is not None:
            os.rename(old, self.target)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_files()
        self._discard()

    def _discard(self) -> None:
        """Remove the stage if it is still ours. What cannot be removed, the next run removes."""
        if self._lock is not None:
            with suppress(OSError):
                if not self.keep:
                    self._remove(self.stage)
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


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
                _write_new(staged[name], data)
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


def _write_new(path: Path, data: bytes) -> None:
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


def _sync_folder(path: str | Path) -> None:
    with reported(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _swap(new: Path, target: Path) -> Path:
    """Put ``new`` in place of ``target`` and return where the old one is now.

    One atomic exchange where the file system can (renameat2, Linux 3.15); else two renames, between
    which the target is briefly absent but both versions are whole.
    """
    if hasattr(_LIBC, "renameat2"):
        args = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if _LIBC.renameat2(*args) == 0:
            return new
    aside = target.parent / f".{target.name}.replaced"
    if os.path.lexists(aside):
        OutputDirectory._remove(aside)
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    return aside
