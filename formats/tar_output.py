"""An output that is one tar archive: its members are written like the files of an output directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import NemoconvError
from ..stores.output import OutputDirectory, OutputFile
from .tar import BLOCK, END, member_header


class OutputMember(OutputFile):
    """One member of a staged archive. Its place is settled with its size, before it is first written."""

    __slots__ = ("_archive", "base")

    def __init__(self, archive: OutputArchive, name: str) -> None:
        super().__init__(f"{archive.target}:{name}", name)
        self._archive = archive
        #: where byte 0 lies in the archive, once the archive is laid out
        self.base: int | None = None

    @property
    def whole(self) -> OutputFile:
        return self._archive.whole

    @property
    def fd(self) -> int:
        return self.whole.fd

    def _place(self, offset: int, nbytes: int) -> int:
        """The archive's byte for ``offset`` of this member."""
        if self.base is None:
            self._archive.lay_out()
            assert self.base is not None
        if offset + nbytes > self.size:
            raise NemoconvError(f"{self.path}: byte {offset + nbytes:,} of {self.size:,}; this is a bug")
        return self.base + offset

    def allocate(self) -> None:
        self.whole.allocate()

    def preallocate(self) -> None:
        self.whole.preallocate()

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        self.whole.pwrite(data, self._place(offset, memoryview(data).nbytes))

    def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
        self.whole.pwritev(views, self._place(offset, sum(map(len, views))))

    def read_back(self, offset: int = 0, nbytes: int | None = None) -> bytes:
        nbytes = self.size if nbytes is None else nbytes
        return self.whole.read_back(self._place(offset, nbytes), nbytes)

    def start_write_back(self) -> None:
        self.whole.start_write_back()

    def sync(self) -> None:
        self.whole.sync()

    def close(self) -> None:
        self.whole.close()


class _Whole(OutputFile):
    """The archive's own file."""

    __slots__ = ("_archive",)

    def __init__(self, archive: OutputArchive) -> None:
        super().__init__(str(archive.staged), archive.target.name)
        self._archive = archive

    def allocate(self) -> None:
        self._archive.lay_out()
        super().allocate()


class OutputArchive(OutputDirectory):
    """A staged tar archive that appears as one file, whole or not at all.

    Give each member its ``size`` (:meth:`file`) before anything is written to it; :meth:`write` adds a
    small member at any time. Members lie in the order in which they were asked for, each at a multiple
    of 512 bytes, and are named ``./name`` as Python's ``tarfile`` names what NeMo packs.
    """

    kind = "file"

    def __init__(self, target: str | Path, *, overwrite: bool = False) -> None:
        super().__init__(target, overwrite=overwrite)
        self.whole = _Whole(self)
        self._files = {self.target.name: self.whole}
        self._members: dict[str, OutputMember] = {}
        self._folders: set[str] = set()
        self._ended = False

    @staticmethod
    def _is_of_kind(path: Path) -> bool:
        return path.is_file()

    def file(self, name: str) -> OutputFile:
        """The member ``name``."""
        if name not in self._members:
            self._members[name] = OutputMember(self, name)
        return self._members[name]

    def write(self, name: str, data: bytes) -> None:
        """A small member, whole. Each can be written once."""
        file = self.file(name)
        file.size = len(data)
        file.pwrite(data, 0)

    def files(self) -> dict[str, OutputFile]:
        """Every member asked for so far."""
        return dict(self._members)

    def lay_out(self) -> None:
        """Settle the places of all members that have none yet, and write their headers."""
        if self._ended:
            raise NemoconvError(f"{self.target}: a member was added after the end; this is a bug")
        at = self.whole.size
        for member in self._members.values():
            if member.base is not None:
                continue
            for folder in _folders(member.name):
                if folder not in self._folders:
                    self._folders.add(folder)
                    header = member_header(folder, 0, folder=True)
                    self.whole.pwrite(header, at)
                    at += len(header)
            header = member_header(f"./{member.name}", member.size)
            self.whole.pwrite(header, at)
            member.base = at + len(header)
            at = member.base + -(-member.size // BLOCK) * BLOCK
        self.whole.size = at

    def complete(self) -> None:
        """End the archive."""
        if not self._ended:
            self.lay_out()
            self.whole.pwrite(END, self.whole.size)
            self.whole.size += len(END)
            self._ended = True

    def commit(self) -> None:
        self.complete()
        super().commit()


def _folders(name: str) -> list[str]:
    """``./`` and every folder above a member, outermost first."""
    parts = name.split("/")[:-1]
    return ["./", *("./" + "/".join(parts[: i + 1]) + "/" for i in range(len(parts)))]
