"""What holds for every test: a run leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: what tools keep for their next run: nothing that a test left
CACHES = frozenset(".git .pytest_cache .hypothesis .mypy_cache .ruff_cache __pycache__".split())
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the last test and all other fixtures: no process is left, and no file but in pytest's folders.

    Orphans are seen too, since they become children of this process. What tests and their processes make
    by ``tempfile`` lies in one folder, empty in the end.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = _files()
    temporary = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv(
            "TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor"))
        )  # torch makes and keeps it
        patch.setattr(tempfile, "tempdir", None)
        yield
    processes = _processes_left()
    files = sorted(str(path) for path in (_files() - before) | set(temporary.iterdir()))
    assert not processes, f"left running (and ended now): {processes}"
    assert not files, f"left behind: {files}"


def _files() -> set[Path]:
    """All files of the source tree but tools' caches."""
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in CACHES]
        found |= {Path(folder, name) for name in files}
    return found


def _processes_left(patience: float = 5) -> list[str]:
    """The commands of processes that have not ended by themselves a little later. They are killed."""
    deadline = time.monotonic() + patience
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return list(left.values())


def _children() -> dict[int, str]:
    """Number and command of each process that descends from this one and runs."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:200]
    mine = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {number: commands[number] for number in mine - {os.getpid()}}
