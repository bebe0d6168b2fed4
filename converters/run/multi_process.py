"""Several processes, on one machine or many, write one checkpoint on a file system that they share.

Every process plans the same conversion from the same headers. Each output file has one owner, which
writes it whole, flushes it and leaves a record with its checksums; then the first rank writes what frames
the tensors and commits. They meet in files beside the output, so no torch, port or network is needed:
only what the checkpoint needs anyway. A rank that fails says so, one that dies falls silent, and in both
cases all others stop; what was finished stays for ``resume``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import MappingError, OutputError, UsageError, printable
from ...resharding.devices import Execute
from ...resharding.plan import Payload, Plan, narrowed
from ...resharding.worker import CastReport
from ...stores.files import SourceFile
from ...stores.output import OutputFile, reported
from ...tensors.checksum import crc32
from .plan import Conversion

#: seconds without a sign of life after which a rank counts as dead; NEMOCONV_RANK_TIMEOUT changes it
_SILENCE = 60.0
_BEAT, _POLL = 1.0, 0.05
_READ_NBYTES = 8 << 20
#: files that a rank writes in one pass over the sources, and would write again if it died meanwhile
_PASS = 8


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int
    count: int


def ranks_of(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """What torchrun says in RANK and WORLD_SIZE, or who starts processes by hand; None for one on its own."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    try:
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        said = " ".join(f"{name}={environment[name]!r}" for name in ("RANK", "WORLD_SIZE"))
        raise UsageError(f"{said} is not one of several ranks")
    return Ranks(rank, count)


def _timeout(said: str | None) -> float:
    """Seconds of silence after which a rank counts as dead. Raises UsageError for what is no such number."""
    if said is None:
        return _SILENCE
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"NEMOCONV_RANK_TIMEOUT={said!r} is no number of seconds")
    return seconds


class SingleProcess:
    """The usual case: one process does everything."""

    follows = False

    def __init__(self, conversion: Conversion) -> None:
        self.conversion = conversion

    def __enter__(self) -> SingleProcess:
        self.conversion.output.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.conversion.output.__exit__(kind, error, trace)

    def execute(self, execute: Execute, advance: Callable[[int], None]) -> CastReport:
        """Write every file."""
        return execute(self.conversion.plan, self.conversion.limits, advance)

    def settle(self) -> None:
        """Compare what of the sources was read in part with the checksums that are known of it."""
        for file in self._sources():
            file.settle()

    def _sources(self) -> list[SourceFile]:
        return [file for file in self.conversion.plan.sources() if isinstance(file, SourceFile)]

    def committed(self) -> None:
        """The output has its name."""


class RankProcess(SingleProcess):
    """One of several ranks. The first leads: it holds the lock of the output, frames and commits it."""

    def __init__(self, conversion: Conversion, ranks: Ranks, *, resume: bool) -> None:
        super().__init__(conversion)
        if any(file.whole is not file for file in _files(conversion)):
            raise UsageError("an archive is written by one process", hint="leave out --ranks")
        self.ranks, self.resume = ranks, resume
        self.follows = ranks.rank > 0
        target = conversion.output.target
        self.folder = target.parent / f".{target.name}.ranks"
        self.digest = _digest(conversion)
        self._silence = _timeout(os.environ.get("NEMOCONV_RANK_TIMEOUT"))
        self._heard: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="nemoconv-beat", daemon=True)
        self._checked = 0.0
        self._run = ""

    def __enter__(self) -> RankProcess:
        output = self.conversion.output
        if not self.follows:
            output.resume = self.resume
            output.__enter__()
            output.keep = True  # what is finished serves the next run, and nothing loads what is not
            self._remove_unfinished()
        try:
            with reported(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                if not self.follows and not self.resume:
                    for old in self.folder.glob("file-*.json"):
                        old.unlink()
                self._meet()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _remove_unfinished(self) -> None:
        """What a run before left that is no file of tensors: the end of a run writes it anew."""
        mine = {file.path for file in _files(self.conversion)}
        for folder, _, names in os.walk(self.conversion.output.stage):
            for name in names:
                if os.path.join(folder, name) not in mine:
                    os.unlink(os.path.join(folder, name))

    def _meet(self) -> None:
        """All ranks find each other, and none what a run before left behind.

        A rank shows a new number; the leader answers with everybody's; a rank that reads its own says so.
        """
        mine = uuid.uuid4().hex
        self._say("hello", {"number": mine, "digest": self.digest})
        self._pulse.start()
        if self.follows:
            while True:
                begin = self._heard_of("begin", 0)
                if begin is not None and begin["numbers"].get(str(self.ranks.rank)) == mine:
                    break
                self._wait("the first rank to begin", begun=False)
            self._run = begin["run"]
            self._say("ready", {"run": self._run})
            self._check_plans(begin["digests"])
            return
        self._run = uuid.uuid4().hex
        waiting, said = set(range(1, self.ranks.count)), None
        while True:
            hellos = {rank: self._heard_of("hello", rank) for rank in range(self.ranks.count)}
            known = {rank: hello for rank, hello in hellos.items() if hello is not None}
            begin = {
                "run": self._run,
                "numbers": {str(rank): hello["number"] for rank, hello in known.items()},
                "digests": {str(rank): hello["digest"] for rank, hello in known.items()},
            }
            if begin != said:
                self._say("begin", begin)
                said = begin
            for rank in list(waiting):
                ready = self._heard_of("ready", rank)
                if ready is not None and ready["run"] == self._run:
                    waiting.discard(rank)
            if not waiting:
                break
            self._wait(f"rank {min(waiting)} to begin", begun=False)
        self._check_plans(begin["digests"])

    def _check_plans(self, digests: Mapping[str, str]) -> None:
        other = sorted(int(rank) for rank, digest in digests.items() if digest != digests["0"])
        if other:
            raise MappingError(
                f"rank {other[0]} plans another conversion than rank 0",
                hint="start all ranks with the same arguments, version and files",
            )

    def execute(self, execute: Execute, advance: Callable[[int], None]) -> CastReport:
        """Write the files that are this rank's; the leader then waits for those of the others."""
        casts = CastReport()
        self._resumed = False

        def watched(nbytes: int) -> None:
            self._look()
            advance(nbytes)

        every = _shares(self.conversion, self.ranks.count)
        open_files = []
        for file in every[self.ranks.rank]:
            record = self._record(file)
            if self.resume and self._is_finished(file, record):
                casts.take(_casts(record))
                self._resumed = True
                watched(sum(p.nbytes for p in self.conversion.payloads if p.file is file))
                continue
            with reported(file.path), suppress(FileNotFoundError):
                os.unlink(file.path)
            open_files.append(file)
        for first in range(0, len(open_files), _PASS):
            files = open_files[first : first + _PASS]
            part = _part(self.conversion.plan, files)
            found = execute(part, self.conversion.limits, watched)
            for file in files:
                file.sync()
                self._finish(file, found)
                casts.take(found)  # empties it: the records of the others count nothing
        for source in self.conversion.plan.sources():
            source.check_unchanged()
        read = {file.path: pieces for file in self._sources() if (pieces := file.read_pieces())}
        self._say("done", {"run": self._run, "read": read, "resumed": self._resumed})
        if self.follows:
            for file in every[self.ranks.rank]:
                file.close()
            return casts
        for rank in range(1, self.ranks.count):
            while (done := self._heard_of("done", rank)) is None or done["run"] != self._run:
                self._wait(f"rank {rank}")
            self._resumed = self._resumed or done["resumed"]
            for source in self._sources():
                source.take_pieces(done["read"].get(source.path, ()))
            for file in every[rank]:
                record = self._record(file)
                self._take_checksums(file, record)
                casts.take(_casts(record))
                file.adopt()
        return casts

    def settle(self) -> None:
        """The leader knows what all have read; of what a run before has read only that it was read."""
        for file in self._sources():
            file.settle(untouched=self._resumed)

    def _record_path(self, file: OutputFile) -> Path:
        return self.folder / f"file-{hashlib.sha256(file.name.encode()).hexdigest()[:16]}.json"

    def _record(self, file: OutputFile) -> dict[str, Any]:
        try:
            record = json.loads(self._record_path(file).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) and record.get("digest") == self.digest else {}

    def _finish(self, file: OutputFile, found: CastReport) -> None:
        """Record a flushed file. What its pass counted goes into the record of the pass's first file."""
        checksums = {f"{p.offset}": p.crc32 for p in self.conversion.payloads if p.file is file}
        record = {
            "digest": self.digest,
            "checksums": checksums,
            "overflows": found.overflows,
            "rounded": found.rounded,
        }
        _replace(self._record_path(file), record)

    def _take_checksums(self, file: OutputFile, record: Mapping[str, Any]) -> None:
        for payload in self.conversion.payloads:
            if payload.file is file:
                payload.crc32 = record["checksums"][str(payload.offset)]

    def _is_finished(self, file: OutputFile, record: Mapping[str, Any]) -> bool:
        """Whether a run before has written a file, and its bytes still have their checksums."""
        if not record or not os.path.exists(file.path) or os.path.getsize(file.path) < file.size:
            return False
        file.adopt()
        self._take_checksums(file, record)
        mine = [payload for payload in self.conversion.payloads if payload.file is file]
        if all(_checksum(payload) == payload.crc32 for payload in mine):
            return True
        file.close()
        file.adopted = False
        return False

    def committed(self) -> None:
        """The leader tells the others; they leave once they have heard."""
        if not self.follows:
            self._say("committed", {"run": self._run})
            end = time.monotonic() + self._silence
            for rank in range(1, self.ranks.count):
                while time.monotonic() < end:
                    gone = self._heard_of("gone", rank)
                    if gone is not None and gone["run"] == self._run:
                        break
                    time.sleep(_POLL)
            self._fall_silent()
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        while (committed := self._heard_of("committed", 0)) is None or committed["run"] != self._run:
            self._wait("the first rank to commit")
        self._fall_silent()
        self._say("gone", {"run": self._run})

    def _fall_silent(self) -> None:
        self._ended.set()
        if self._pulse.is_alive():
            self._pulse.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is not None and self._run:
            with suppress(OSError, OutputError):
                self._say("failed", {"run": self._run, "why": printable(str(error), 500)})
        for file in _files(self.conversion):
            file.close()
        if not self.follows:
            self.conversion.output.__exit__(kind, error, trace)

    def _say(self, what: str, content: Mapping[str, Any]) -> None:
        _replace(self.folder / f"{what}-{self.ranks.rank}", content)

    def _heard_of(self, what: str, rank: int) -> dict[str, Any] | None:
        try:
            said = json.loads((self.folder / f"{what}-{rank}").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT if count else 0):
            count += 1
            with suppress(OSError, OutputError):
                self._say("alive", {"count": count, "process": os.getpid()})

    def _wait(self, what: str, *, begun: bool = True) -> None:
        if begun:
            self._look()
        elif -1 not in self._heard:
            self._heard[-1] = (what, time.monotonic())
        elif time.monotonic() - self._heard[-1][1] > self._silence:
            raise OutputError(
                f"{self.conversion.output.target}: waited {self._silence:.0f} s for {what}",
                hint="start all ranks, with the output on a file system that they share",
            )
        time.sleep(_POLL)

    def _look(self) -> None:
        """Raise OutputError when another rank has failed or fallen silent; looks at most twice a second."""
        now = time.monotonic()
        if now - self._checked < 0.5:
            return
        self._checked = now
        for rank in range(self.ranks.count):
            failed = self._heard_of("failed", rank) if rank != self.ranks.rank else None
            if failed is not None and failed["run"] == self._run:
                raise OutputError(
                    f"rank {rank} failed: {failed['why']}", hint="run it again with --resume to continue"
                )
        for rank in range(1, self.ranks.count) if not self.follows else (0,):
            alive = json.dumps(self._heard_of("alive", rank))
            before, when = self._heard.get(rank, ("", now))
            if alive != before:
                self._heard[rank] = alive, now
            elif now - when > self._silence:
                raise OutputError(
                    f"rank {rank} has given no sign of life for {self._silence:.0f} s",
                    hint="run it again with --resume to continue",
                )


def staged(conversion: Conversion, *, resume: bool, ranks: bool = False) -> SingleProcess:
    """How this process takes part in writing: alone, or, where ``ranks`` asks for it, as one of several.

    What a launcher put into the environment means nothing by itself: a training job that converts something
    on its first rank has RANK and WORLD_SIZE, too.
    """
    if not ranks:
        if resume:
            raise UsageError(
                "--resume continues a run of several ranks", hint="add --ranks and start it with torchrun"
            )
        return SingleProcess(conversion)
    mine = ranks_of()
    if mine is None:
        raise UsageError(
            "--ranks shares the work between processes, but RANK and WORLD_SIZE are not set",
            hint="start it with torchrun, or set them for each process",
        )
    return RankProcess(conversion, mine, resume=resume)


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file that appears whole."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    with reported(path):
        with open(new, "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def _files(conversion: Conversion) -> list[OutputFile]:
    """The files that hold tensors, each once."""
    return list({id(payload.file): payload.file for payload in conversion.payloads}.values())


def _shares(conversion: Conversion, count: int) -> list[list[OutputFile]]:
    """Each rank's files: neighbours, which are filled from the same tensors, and about as many bytes."""
    shares: list[list[OutputFile]] = [[] for _ in range(count)]
    files = _files(conversion)
    total, before = sum(file.size for file in files), 0
    for number, file in enumerate(files):
        middle = (before + file.size / 2) / total if total else number / len(files)
        shares[min(count - 1, int(middle * count))].append(file)
        before += file.size
    return shares


def _part(plan: Plan, files: Sequence[OutputFile]) -> Plan:
    """What of a plan goes into some files."""
    part, wanted = Plan(), {id(file) for file in files}
    for job in plan.jobs:
        targets = tuple(target for target in job.targets if id(target.payload.file) in wanted)
        if targets:
            part.jobs.append(narrowed(replace(job, targets=targets)))
    return part


def _casts(record: Mapping[str, Any]) -> CastReport:
    return CastReport(dict(record["overflows"]), dict(record["rounded"]))


def _checksum(payload: Payload) -> int:
    found = 0
    for first in range(0, payload.nbytes, _READ_NBYTES):
        size = min(_READ_NBYTES, payload.nbytes - first)
        found = crc32(payload.file.read_back(payload.offset + first, size), found)
    return found


def _digest(conversion: Conversion) -> str:
    """What a plan is: options, sources as they are on the disk, and every place in the output."""
    said: list[Any] = [
        conversion.header,
        [(file.name, file.size, file.version) for file in conversion.plan.sources()],
        [(p.name, p.file.name, p.offset, p.nbytes) for p in conversion.payloads],
    ]
    return hashlib.sha256(json.dumps(said, default=str, sort_keys=True).encode()).hexdigest()
