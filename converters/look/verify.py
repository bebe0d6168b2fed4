"""Is a checkpoint whole, and does it still hold what was written?

``verify`` calls nothing complete that it did not open: beside the tensors that its reader opens may lie
states of a run that torch saved, and a ``common.pt`` that is cut short makes Megatron fail, however whole the
weights are. What cannot be opened is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedArchitecture, UnsupportedError, some
from ...formats.torch.checkpoint import STATE_DICTS_KNOWN, TorchFile
from ...formats.torch.common import COMMON_KNOWN
from ...stores.files import Folder, SourceFile
from ...tensors.checksum import crc32
from .. import manifest
from ..abilities import Checksummed, Filed, folder_of
from ..archive.archive import all_files
from ..base import Checkpoint, holdings
from ..bind import Bound
from ..registry import open_alike, open_checkpoint
from ..run import reading
from ..run.compare import Comparison, check_repeated, compare

Progress = Callable[[str, int, int], None]
_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class Health:
    """What :func:`check` looked at. Anything wrong is raised, so this is always good news."""

    tensors: int
    checksummed_nbytes: int
    manifest: bool
    model: str
    #: the format has checksums of its own
    own: bool = False
    #: files with numbers in them that lie there and were not opened
    unopened: tuple[str, ...] = ()

    equal = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line."""
        kinds = {"the manifest": self.manifest, "the file's own checksums": self.own}
        against = " and ".join(kind for kind, there in kinds.items() if there)
        left = f"; not opened: {some(self.unopened, 5)}" if self.unopened else ""
        if not self.checksummed_nbytes:
            return f"{self.tensors:,} tensors ({self.model}): complete; the format holds no checksums{left}"
        return (
            f"{self.tensors:,} tensors ({self.model}): complete; "
            f"{self.checksummed_nbytes:,} bytes agree with {against}{left}"
        )


def verify(
    a: str | Path,
    b: str | Path | None = None,
    *,
    config: str | Path | None = None,
    progress: Progress | None = None,
) -> Health | Comparison:
    """Check ``a`` alone, or compare it with ``b`` bit for bit.

    Alone: headers agree with the files to the byte, every tensor that the architecture needs is there
    with the right shape and nothing else is, and all checksums hold. Raises CorruptCheckpoint,
    MappingError and the like for what is wrong. With ``b``: see
    :func:`nemoconv.converters.run.compare.compare`.
    """
    if b is None:
        with open_checkpoint(a, config=config) as only:
            return check(only, progress)
    with open_alike(a, config=config) as first, open_alike(b, config=config) as second:
        return compare(first, second, progress)


def check(checkpoint: Checkpoint, progress: Progress | None = None) -> Health:
    """Check one open checkpoint."""
    total = sum(spec.nbytes for _, spec in holdings(checkpoint))
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress("verify", min(done, total), total)

    try:
        model = checkpoint.model()
    except UnsupportedArchitecture:
        kind = "architecture unknown: names not checked"
        names = checkpoint.keys()
        cut = sum(not checkpoint.joins(name) for name in names)
        kind += f", {cut:,} tensors in pieces that no rule joins" if cut else ""
        for name in names:
            checkpoint.pieces(name)
        bound = None
    else:
        kind = model.table.architecture
        bound = Bound(checkpoint, model)
        for instance in bound.instances:
            bound.dtype(instance)
            bound.extents(instance, bound.space(instance.rule, bound.sizes))
    check_repeated(checkpoint)
    for _, nbytes in checkpoint.verify_checksums() if isinstance(checkpoint, Checksummed) else ():
        advance(nbytes)
    if bound is not None:
        reading.check_replicas(bound)
    own = done > 0
    directory = folder_of(checkpoint) if checkpoint.path.is_dir() or isinstance(checkpoint, Filed) else None
    left: list[str] = []
    if directory is not None:
        held = {name.rpartition("/")[2] for name in checkpoint.describe()["files"]}
        more, left = open_states(directory, held)
        done += more if own else 0  # else what is said to agree would be no tensor
    written = manifest.read(directory) if directory is not None else None
    if directory is not None and written is not None:
        # a format with checksums of its own was read once already: here only their agreement is left
        done = 0
        for nbytes in _check_manifest(directory, written["files"]):
            advance(nbytes)
        left = [name for name in left if name not in written["files"]]
    if directory is not None:
        directory.close()
    return Health(len(checkpoint.keys()), done, written is not None, kind, own, tuple(left))


def _check_manifest(directory: Folder, files: dict[str, Any]) -> list[int]:
    """Recompute every checksum of the manifest. Raises CorruptCheckpoint for the first that differs."""
    read = []
    for name, entry in files.items():
        where = f"{directory.path / name}"
        file = directory.file(name)
        if file.size != entry["size"]:
            raise CorruptCheckpoint(
                f"{where}: has {file.size:,} bytes, the manifest says {entry['size']:,}",
                hint="compare it with the original",
            )
        rows = entry.get("tensors", [])
        for tensor, offset, nbytes, expected in rows:
            found = _crc_of(file, offset, nbytes)
            _compare(f"{where}: {tensor} (bytes {offset:,}..{offset + nbytes:,})", found, expected)
            read.append(nbytes)
        frame = 0
        for offset, nbytes in manifest.gaps(rows, file.size):
            frame = _crc_of(file, offset, nbytes, frame)
            read.append(nbytes)
        _compare(f"{where}: what is not tensors" if rows else f"{where}: the file", frame, entry["crc32"])
    return read


def _compare(what: str, found: int, expected: str) -> None:
    if f"{found:08x}" != expected:
        raise CorruptCheckpoint(
            f"{what} has checksum {found:08x}, the manifest says {expected}",
            hint="it changed after it was written; copy it again",
        )


def _crc_of(file: SourceFile, offset: int, nbytes: int, checksum: int = 0) -> int:
    buffer = memoryview(bytearray(min(_BLOCK, nbytes)))
    while nbytes:
        block = buffer[: min(len(buffer), nbytes)]
        file.read_into(offset, block)
        checksum = crc32(block, checksum)
        offset, nbytes = offset + len(block), nbytes - len(block)
    return checksum


_STATES: Final = (".pt", ".pth", ".ckpt")
#: what Megatron reads of every distributed checkpoint
_COMMON: Final = "common.pt"
#: endings of files that hold numbers and that no reader of ours need have opened
_WEIGHTS: Final = (*_STATES, ".bin", ".distcp", ".safetensors", ".onnx", ".data", ".gguf", ".npz", ".h5")


def open_states(folder: Folder, held: Collection[str]) -> tuple[int, list[str]]:
    """Open what torch saved in ``folder`` and is not among the files ``held`` (names without folders):
    (bytes that agree with checksums of their own, names of files with numbers that were not opened).

    Raises CorruptCheckpoint for a file that is cut short or whose bytes changed.
    """
    done, left = 0, []
    for name in all_files(folder):
        if name.rpartition("/")[2] in held or not name.endswith(_WEIGHTS):
            continue
        if not name.endswith(_STATES):
            left.append(name)
            continue
        try:
            done += TorchFile(folder.file(name), known={**STATE_DICTS_KNOWN, **COMMON_KNOWN}).verify_crc()
        except (UnsafeCheckpoint, UnsupportedError) as error:  # unknown classes, or no file of torch's
            if name.rpartition("/")[2] == _COMMON:
                raise CorruptCheckpoint(
                    f"{error.message}, and Megatron reads it", hint="copy it again"
                ) from None
            left.append(name)
    return done, left
