"""Run commands in children and measure them: seconds, CPU-seconds, peak memory; and copies to compare with.

All sizes are in bytes, all times in seconds.
"""

from __future__ import annotations

import datetime
import importlib
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    importlib.import_module("nemoconv.tensors.checksum")  # the package, and a compiled part of it
except ImportError as error:
    sys.exit(f"{error}: run pip install -e . in the repository root first")

SAMPLE_SECONDS = 0.02
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What one child used.

    ``cpu`` is user + system time of the child and its own children. ``anon_nbytes`` is the highest
    RssAnon seen (sampled at 50 Hz: heap and buffers, not file pages); ``rss_nbytes`` the highest VmHWM.
    """

    wall: float
    cpu: float
    anon_nbytes: int
    rss_nbytes: int
    output: str = ""


class Failed(Exception):
    """A measured command ended with an exit code other than 0."""


def run(command: Sequence[str]) -> Usage:
    """Run a command to its end and measure it. Raises Failed with the end of what it printed.

    Python may keep its bytecode, as it does for an installed package: the first run pays for it.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as out:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        ended = threading.Event()
        peaks = {"RssAnon": 0, "VmHWM": 0}
        sampler = threading.Thread(target=_sample, args=(child.pid, peaks, ended))
        sampler.start()
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        finally:
            wall = time.perf_counter() - started
            ended.set()
            sampler.join()
        child.returncode = code = os.waitstatus_to_exitcode(status)  # reaped here, not by Popen
        out.seek(0)
        printed = out.read().decode(errors="replace")
    if code:
        raise Failed(f"{' '.join(command)[:300]}: exit code {code}\n{printed[-2000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, peaks["RssAnon"], peaks["VmHWM"], printed)


def _sample(pid: int, peaks: dict[str, int], ended: threading.Event) -> None:
    while True:
        with suppress(OSError), open(f"/proc/{pid}/status") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key in peaks:
                    peaks[key] = max(peaks[key], int(value.split()[0]) * 1024)
        if ended.wait(SAMPLE_SECONDS):
            return


# What is measured


def program(*arguments: str | Path) -> list[str]:
    """The command that runs nemoconv with this interpreter."""
    return [sys.executable, "-m", "nemoconv", *map(str, arguments)]


def copy(source: Path, target: Path) -> list[str]:
    """``cp -r`` and an fsync of every file, as a conversion does it."""
    script = 'cp -r "$0" "$1" && find "$1" -type f -exec sync {} + && sync "$1"'
    return ["sh", "-c", script, str(source), str(target)]


# The page cache


def _files(place: Path) -> Iterator[Path]:
    """The files of a folder, or the one file that ``place`` is."""
    return (path for path in (place, *place.rglob("*")) if path.is_file())


def drop(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for path in _files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warm(folder: Path) -> None:
    """Bring a folder's files into the page cache, as far as they fit."""
    buffer = bytearray(4 * MIB)
    for path in _files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def remove(folder: Path) -> None:
    """Remove a folder or file if it is there and let the disk finish what is left to do."""
    if folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    os.sync()


def back_memory(wanted: int = 6 << 30) -> None:
    """Have the host of a virtual machine back free memory, just before a run.

    Freed page cache goes back to the host a moment later, and whoever needs it next pays for new pages:
    seconds of CPU time that fell on ``cp`` or on us at random, and were most of the figure.
    """
    with mmap.mmap(-1, wanted) as memory:
        for page in range(0, wanted, 2 * MIB):
            memory[page : page + 2 * MIB] = _ZEROS


_ZEROS = bytes(2 * MIB)


def nbytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in _files(folder))


# Rounds


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, least and most of several figures."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f})"


def rounds(count: int, before: Callable[[], None], *commands: Sequence[str]) -> list[list[Usage]]:
    """Run the commands in turn, ``count`` times; ``before`` runs ahead of each. One list per command.

    Every other round runs them in the opposite order, so that none always comes first.
    """
    used: list[list[Usage]] = [[] for _ in commands]
    for number in range(count):
        order = range(len(commands))
        for which in order if number % 2 == 0 else reversed(order):
            before()
            back_memory()
            usage = run(commands[which])
            print(f"  {usage.wall:7.2f} s  {' '.join(commands[which])[-100:]}", file=sys.stderr)
            used[which].append(usage)
    return used


@dataclass(frozen=True, slots=True)
class Check:
    """One figure against its target; no target is a figure to know."""

    what: str
    figure: float
    target: float | None
    unit: str = ""

    @property
    def passed(self) -> bool | None:
        return None if self.target is None else self.figure <= self.target

    def row(self) -> list[str]:
        target = "" if self.target is None else f"<= {self.target:g} {self.unit}".rstrip()
        verdict = {None: "", True: "PASS", False: "FAIL"}[self.passed]
        return [self.what, f"{self.figure:.3g} {self.unit}".rstrip(), target, verdict]


# What is printed


def machine(folder: Path) -> dict[str, str]:
    """Facts without which the figures mean nothing; the file system is that of ``folder``."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": models[0] if models else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
        "kernel": platform.release(),
        "file system": _file_system(folder),
        "Python": platform.python_version(),
    }


def _file_system(folder: Path) -> str:
    """Type and device of the mount that holds ``folder``."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                kind, source = right.split()[:2]
                return f"{kind} on {source}"
    return "unknown"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(
    facts: dict[str, str],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    checks: Sequence[Check],
    raw: Any,
    json_file: Path | None,
) -> int:
    """Print the tables, write the JSON file; returns 1 if a target was missed."""
    print("; ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    print(table(head, rows))
    if checks:
        print("\n" + table(("check", "figure", "target", ""), [check.row() for check in checks]))
    if json_file is not None:
        listed = [{**asdict(check), "passed": check.passed} for check in checks]
        content = {"machine": facts, "checks": listed, "runs": raw}
        json_file.write_text(json.dumps(content, indent=1, default=asdict))
    return int(any(check.passed is False for check in checks))


@contextmanager
def workspace(where: Path | None) -> Iterator[Path]:
    """A new folder for all temporary data, removed at the end: in ``where``, default beside the cwd."""
    parent = where or Path.cwd().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nemoconv-bench-", dir=parent) as folder:
        yield Path(folder)
