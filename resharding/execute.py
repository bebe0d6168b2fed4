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
from dataclasses import dataclass, field
from itertools import product
from math import isqrt, prod
from typing import Any

import numpy

from nemoconv.errors import NemoconvError, UsageError
from nemoconv.formats.checksum import crc32, crc32_combine
from nemoconv.formats.tensors import Extent, contiguous_strides
from nemoconv.resharding.boxes import Shape, intersect, narrow
from nemoconv.resharding.plan import Job, Payload, Plan, Target
from nemoconv.resharding.strided import Buffer, gather_runs, loops, read_strided
from nemoconv.resharding.transposed import square_tiles, turns_in_target

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

#: (payload, offset in it, length, CRC-32)
Written = tuple[Payload, int, int, int]
Box = tuple[Shape, Shape]


def tiles(start: Shape, shape: Shape, limit: int) -> Iterator[Box]:
    """Cut a box into boxes of at most ``limit`` elements, in C order."""
    if 0 in shape:
        return
    axis, inner = len(shape) - 1, 1
    while axis > 0 and inner * shape[axis] <= limit:
        inner *= shape[axis]
        axis -= 1
    if not shape:
        yield (), ()
        return
    step = max(1, limit // inner)
    outer = [range(first, first + count) for first, count in zip(start[:axis], shape[:axis], strict=True)]
    last = start[axis] + shape[axis]
    for index in product(*outer):
        for first in range(start[axis], last, step):
            count = min(step, last - first)
            yield (*index, first, *start[axis + 1 :]), (*(1,) * axis, count, *shape[axis + 1 :])


def tile_groups(job: Job, limit: int) -> Iterator[list[Box]]:
    """The tiles of a job, in groups that should stay together.

    Where the source is a transposed matrix, tiles are nearer to square, so that there are lines worth
    reading and runs worth writing; a group then is as many rows as one tile has, so that its runs join up.
    """
    start = (0,) * len(job.shape)
    if turns_in_target(job):
        for box in square_tiles(job, limit):
            yield [box]
        return
    if not any(_is_transposed(extent) for extent in job.sources):
        for box in tiles(start, job.shape, limit):
            yield [box]
        return
    last = job.shape[-1]
    width = min(last, limit, isqrt(8 * limit))  # a write costs more than a read of the same size
    for low, shape in tiles(start[:-1], job.shape[:-1], max(1, limit // width)):
        yield [((*low, first), (*shape, min(width, last - first))) for first in range(0, last, width)]


def _is_transposed(extent: Extent) -> bool:
    """Whether neighbours in the file are no neighbours along the last axis."""
    if not extent.shape:
        return False
    *outer, last = zip(extent.shape, extent.strides, strict=True)
    return last[0] > 1 and any(length > 1 and step < last[1] for length, step in outer)


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
    return (
        job.source_dtype == job.target_dtype
        and not any(extent.file.stored_nbytes(itemsize) != itemsize for extent in job.sources)  # decoded
        and all(_run_nbytes(piece, itemsize) >= LONG_RUN_NBYTES for piece in (*job.sources, *job.targets))
    )


def _run_nbytes(piece: Extent | Target, itemsize: int) -> int:
    """Bytes of a box that lie side by side in its file."""
    length = itemsize
    for count, step in zip(reversed(piece.shape), reversed(piece.strides), strict=True):
        if count > 1 and step != length:
            break
        length *= count
    return length


@dataclass(slots=True)
class CastReport:
    """What a change of element type lost, by tensor: finite values that became infinite, and, where it is
    cheap to know (float32 to bfloat16), values that were rounded."""

    overflows: dict[str, int] = field(default_factory=dict)
    rounded: dict[str, int] = field(default_factory=dict)

    def take(self, other: CastReport) -> None:
        """Add what ``other`` counted, and empty it."""
        for mine, given in ((self.overflows, other.overflows), (self.rounded, other.rounded)):
            for name, count in given.items():
                mine[name] = mine.get(name, 0) + count
            given.clear()


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
                f"--max-memory {max_memory >> 20} MiB is too little for this conversion",
                hint=f"it needs at least {(needed >> 20) + 1} MiB",
            )
        return cls(workers, min(TILE_NBYTES, room // (3 * workers)))


class Worker:
    """One thread's buffers and the way of one tile through them."""

    def __init__(self, tile_nbytes: int, report: CastReport) -> None:
        self.tile: Buffer = numpy.empty(tile_nbytes, numpy.uint8)
        self.scratch: Buffer = numpy.empty(tile_nbytes, numpy.uint8)
        self.cast: Buffer | None = None
        self.report = report

    def run(self, job: Job, boxes: list[Box], done: Callable[[int], None]) -> list[Written]:
        written: list[Written] = []
        for start, shape in boxes:
            before = len(written)
            self._read(job, start, shape)
            data = self._convert(job, prod(shape))
            self._write(job, start, shape, data, written)
            done(sum(length for _, _, length, _ in written[before:]))
        return merge_written(written)

    def _read(self, job: Job, start: Shape, shape: Shape) -> None:
        itemsize = job.source_dtype.itemsize
        strides = contiguous_strides(shape, itemsize)
        held = 0
        parts = []
        for extent in job.sources:
            common = intersect(extent.start, extent.shape, start, shape)
            if common:
                held += prod(common[1])
                parts.append((extent, common))
        if held < prod(shape):
            self.tile[: prod(shape) * itemsize] = 0
        for extent, (low, size) in parts:
            piece = narrow(extent, low, size)
            at = sum((a - b) * step for a, b, step in zip(low, start, strides, strict=True))
            axes = loops(size, piece.strides, strides)
            read_strided(piece.file, piece.offset, axes, itemsize, self.tile[at:], self.scratch)

    def _convert(self, job: Job, count: int) -> Buffer:
        source, target = job.source_dtype, job.target_dtype
        if source == target:
            return self.tile
        if self.cast is None:
            self.cast = numpy.empty(len(self.tile), numpy.uint8)
        if (source.name, target.name) == ("float32", "bfloat16") and not self._rounds(job, count):
            return self.cast
        values = self.tile[: count * source.itemsize].view(source.numpy())
        result = self.cast[: count * target.itemsize].view(target.numpy())
        with numpy.errstate(over="ignore", invalid="ignore"):
            numpy.copyto(result, values, casting="unsafe")
            lost = 0
            if _maybe_nonfinite(result, target.name):
                lost = int(numpy.count_nonzero(~numpy.isfinite(result) & numpy.isfinite(values)))
        if lost:
            self.report.overflows[job.name] = self.report.overflows.get(job.name, 0) + lost
        return self.cast

    def _rounds(self, job: Job, count: int) -> bool:
        """Whether some float32 of the tile are no bfloat16; if none, fill ``cast``, NaNs to the bit."""
        assert self.cast is not None
        halves = self.tile[: count * 4].view(numpy.uint16)  # the low half first, as on the disk
        changed = int(numpy.count_nonzero(halves[::2]))
        if changed:
            self.report.rounded[job.name] = self.report.rounded.get(job.name, 0) + changed
        else:
            self.cast[: count * 2].view(numpy.uint16)[:] = halves[1::2]
        return bool(changed)

    def _write(self, job: Job, start: Shape, shape: Shape, data: Buffer, written: list[Written]) -> None:
        itemsize = job.target_dtype.itemsize
        strides = contiguous_strides(shape, itemsize)
        for target in job.targets:
            common = intersect(target.start, target.shape, start, shape)
            if common is None:
                continue
            low, size = common
            at = sum((a - b) * step for a, b, step in zip(low, start, strides, strict=True))
            offset = target.offset + sum(
                (a - b) * step for a, b, step in zip(low, target.start, target.strides, strict=True)
            )
            axes = loops(size, target.strides, strides)
            for place, views in gather_runs(axes, itemsize, data[at:], self.scratch):
                written.append(write_views(target.payload, offset + place, views))


def _maybe_nonfinite(values: numpy.ndarray[Any, Any], name: str) -> bool:
    """Whether an infinity or NaN may be among ``values``; fast where casts are common."""
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(name)
    if exponent is None:
        return True
    return bool((values.view(numpy.uint16) & exponent == exponent).any())


def write_views(payload: Payload, offset: int, views: list[memoryview]) -> Written:
    """Write views one after another at ``offset`` of the payload."""
    checksum = 0
    for view in views:
        checksum = crc32(view, checksum)
    length = sum(map(len, views))
    if len(views) == 1:
        payload.file.pwrite(views[0], payload.offset + offset)
    else:
        payload.file.pwritev(views, payload.offset + offset)
    return payload, offset, length, checksum


def merge_written(written: list[Written]) -> list[Written]:
    """Join pieces that follow one another in the same payload, so that little is kept."""
    merged: list[Written] = []
    for payload, offset, length, checksum in sorted(written, key=lambda w: (id(w[0]), w[1])):
        if merged:
            last, at, held, crc = merged[-1]
            if last is payload and at + held == offset:
                merged[-1] = (payload, at, held + length, crc32_combine(crc, checksum, length))
                continue
        merged.append((payload, offset, length, checksum))
    return merged


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
