"""Carry out a plan in bounded memory: tiles read once, checksummed, written to every target.

A tile is a sub-box of a job small enough to stay in the processor's cache. Each worker owns its
buffers; workers share nothing but the list of tasks. Checksums of tiles are combined at the end, and
a payload whose tiles do not cover it exactly is an error: the proof, at run time, that every target
byte was written once.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from ..errors import NemoconvError, UsageError
from ..tensors.boxes import intersect, narrow
from ..tensors.stored import Extent
from .plan import Job, Plan, Target
from .tiles import Box, tile_groups
from .worker import CastReport, Worker, Written, merge_written

TILE_NBYTES = 2 << 20
TASK_NBYTES = 64 << 20
#: how far ahead of the readers the kernel is told what will be read
READ_AHEAD_NBYTES = 96 << 20
#: how often the disk is given what was written meanwhile, so that it works while we do; more often
#: costs CPU time, as writers then wait for pages that are under way
WRITE_BACK_SECONDS = 0.1
#: shorter runs of bytes cost the processor more than the memory
LONG_RUN_NBYTES = 64 << 10
#: what an interpreter with the plan's modules holds before any buffer
BASE_NBYTES = 40 << 20


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(plan: Plan, limits: Limits) -> int:
    """How many of the workers a plan is given.

    Copying long runs waits for memory and disk, not for the processor: where every core has a worker, one
    core is left to the kernel, which writes back meanwhile. That costs no time and a fifth less CPU time.
    """
    if not 1 < limits.workers == _usable_cores():
        return limits.workers
    copied = sum(job.target_nbytes for job in plan.jobs if _copies_long_runs(job))
    return limits.workers - 1 if copied * 8 >= plan.write_nbytes * 7 else limits.workers


def _copies_long_runs(job: Job) -> bool:
    itemsize = job.source_dtype.itemsize
    pieces: list[Extent | Target] = [*job.sources, *job.targets]
    return (
        job.source_dtype == job.target_dtype
        and not any(extent.file.stored_nbytes(itemsize) != itemsize for extent in job.sources)  # decoded
        and all(_run_nbytes(piece, itemsize) >= LONG_RUN_NBYTES for piece in pieces)
    )


def _run_nbytes(piece: Extent | Target, itemsize: int) -> int:
    """Bytes of a box that lie side by side in its file."""
    length = itemsize
    for count, step in zip(reversed(piece.shape), reversed(piece.strides), strict=True):
        if count > 1 and step != length:
            break
        length *= count
    return length


@dataclass(frozen=True, slots=True)
class Limits:
    """How much memory and how many threads a run may take."""

    workers: int
    tile_nbytes: int

    @property
    def nbytes(self) -> int:
        """Buffers of all workers: source tile, scratch, and target tile of a cast."""
        return self.workers * 3 * self.tile_nbytes

    @classmethod
    def within(cls, max_memory: int, plan_nbytes: int, workers: int | None = None) -> Limits:
        """Limits that keep plan, interpreter and buffers below ``max_memory`` bytes."""
        workers = workers or min(4, _usable_cores())
        room = max_memory - plan_nbytes - BASE_NBYTES
        smallest = 256 << 10
        while workers > 1 and room < workers * 3 * smallest:
            workers -= 1
        if room < 3 * smallest:
            needed = plan_nbytes + BASE_NBYTES + 3 * smallest
            raise UsageError(
                f"--max-memory {_text(max_memory)} is too little for this conversion",
                hint=f"it needs at least {(needed >> 20) + 1} MiB",
            )
        return cls(workers, min(TILE_NBYTES, room // (3 * workers)))


def _text(nbytes: int) -> str:
    """A number of bytes as it was probably meant."""
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes:,} bytes"


class _Tasks:
    """Jobs cut into tasks, handed to workers in order, with the kernel told what comes next."""

    def __init__(self, plan: Plan, tile_nbytes: int) -> None:
        self._iterator = self._generate(plan, tile_nbytes)
        self._ahead: deque[tuple[Job, list[Box], int]] = deque()
        self._ahead_nbytes = 0
        self._lock = threading.Lock()

    @staticmethod
    def _generate(plan: Plan, tile_nbytes: int) -> Iterator[tuple[Job, list[Box]]]:
        for job in plan.jobs:
            itemsize = max(job.source_dtype.itemsize, job.target_dtype.itemsize)
            boxes: list[Box] = []
            held = 0
            for group in tile_groups(job, max(1, tile_nbytes // itemsize)):
                boxes += group
                held += sum(prod(shape) for _, shape in group) * itemsize
                if held >= TASK_NBYTES:
                    yield job, boxes
                    boxes, held = [], 0
            if boxes:
                yield job, boxes

    def _advise(self, job: Job, boxes: list[Box]) -> int:
        """Ask for the source bytes of these tiles; returns how many."""
        total = 0
        for extent in job.sources:
            first, last = None, 0
            for start, shape in (boxes[0], boxes[-1]):
                common = intersect(extent.start, extent.shape, start, shape)
                if common:
                    piece = narrow(extent, *common)
                    span = sum((n - 1) * step for n, step in zip(piece.shape, piece.strides, strict=True))
                    first = piece.offset if first is None else min(first, piece.offset)
                    last = max(last, piece.offset + span + job.source_dtype.itemsize)
            if first is not None:
                extent.file.will_need(first, last - first)
                total += extent.file.stored_nbytes(last - first)
        return total

    def take(self) -> tuple[Job, list[Box]] | None:
        with self._lock:
            while self._ahead_nbytes < READ_AHEAD_NBYTES:
                task = next(self._iterator, None)
                if task is None:
                    break
                nbytes = self._advise(*task)
                self._ahead.append((*task, nbytes))
                self._ahead_nbytes += nbytes
            if not self._ahead:
                return None
            job, boxes, nbytes = self._ahead.popleft()
            self._ahead_nbytes -= nbytes
            return job, boxes


def execute(
    plan: Plan,
    limits: Limits,
    progress: Callable[[int], None] | None = None,
    make_worker: Callable[[int, CastReport], Worker] = Worker,
) -> CastReport:
    """Run every job of the plan and set the CRC-32 of every payload.

    ``progress`` is called with the bytes written since its last call, from any worker thread, one
    call at a time. The first error of a worker stops the others and is raised here. ``make_worker`` makes
    what carries out tiles, in the thread that will use it.
    """
    plan.jobs.sort(key=lambda job: job.position)
    outputs = plan.outputs()
    for file in outputs:
        file.allocate()
    tasks, report = _Tasks(plan, limits.tile_nbytes), CastReport()
    written: list[Written] = []
    errors: list[BaseException] = []
    started, stop, lock = threading.Event(), threading.Event(), threading.Lock()
    # not Thread.join: in Python 3.11, once interrupted, it takes a running thread for a finished one
    ended = [threading.Event() for _ in range(_threads(plan, limits))]

    def done(nbytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        if progress:
            with lock:
                progress(nbytes)

    def work(number: int) -> None:
        try:
            worker = make_worker(limits.tile_nbytes, CastReport())
            started.wait()
            while not stop.is_set() and (task := tasks.take()) is not None:
                pieces = worker.run(*task, done)
                with lock:
                    written.extend(pieces)
                    report.take(worker.report)
        except _Stopped:
            pass
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)
            stop.set()
        finally:
            ended[number].set()

    begun = 0
    try:
        for number in range(len(ended)):
            threading.Thread(target=work, args=(number,), name=f"nemoconv-{number}").start()
            begun += 1
        started.set()
        for event in ended:
            while not event.wait(WRITE_BACK_SECONDS):
                for file in outputs:
                    file.start_write_back()
    except BaseException:  # Ctrl-C: no thread may still write when the output is removed
        stop.set()
        started.set()  # a thread whose start was interrupted comes to life later, sees stop and ends
        for event in ended[:begun]:
            event.wait()
        raise
    if errors:
        raise errors[0]
    _settle(plan, written)
    return report


class _Stopped(Exception):
    pass


def _settle(plan: Plan, written: list[Written]) -> None:
    """Set the payloads' checksums, and prove that each was written whole."""
    merged = {id(piece[0]): piece for piece in merge_written(written)}
    for job in plan.jobs:
        for target in job.targets:
            payload = target.payload
            _, offset, length, checksum = merged.get(id(payload), (payload, 0, 0, 0))
            if offset != 0 or length != payload.nbytes:
                raise NemoconvError(
                    f"{payload.name}: {length:,} of {payload.nbytes:,} bytes were written; this is a bug"
                )
            payload.crc32 = checksum
