"""Carry out a plan in bounded memory: tiles read once, checksummed, written to every target.

A tile is a sub-box of a job small enough to stay in the processor's cache. Each worker owns its
buffers; workers share nothing but the list of tasks, by output file (:mod:`nemoconv.resharding.schedule`).
Checksums of tiles are combined at the end, and a payload whose tiles do not cover it exactly is an error:
the proof, at run time, that every target byte was written once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import NemoconvError, UsageError
from .cores import usable_cores
from .plan import Plan
from .schedule import FileSchedule, copies_long_runs
from .worker import CastReport, Worker, Written, merge_written

TILE_NBYTES = 2 << 20
#: with many workers a tile is larger: each costs a few turns of the interpreter's lock, whatever its size
LARGE_TILE_NBYTES, FEW_WORKERS = 4 << 20, 4
#: how often the disk is given what was written meanwhile, so that it works while we do; more often
#: costs CPU time, as writers then wait for pages that are under way
WRITE_BACK_SECONDS = 0.1
#: what an interpreter with the plan's modules holds before any buffer
BASE_NBYTES = 40 << 20


def _threads(plan: Plan, limits: Limits) -> int:
    """How many of the workers a plan is given.

    Copying long runs waits for memory and disk, not for the processor: where every core has a worker, one
    core is left to the kernel, which writes back meanwhile. That costs no time and a fifth less CPU time.
    """
    if not 1 < limits.workers == usable_cores():
        return limits.workers
    copied = sum(job.target_nbytes for job in plan.jobs if copies_long_runs(job))
    return limits.workers - 1 if copied * 8 >= plan.write_nbytes * 7 else limits.workers


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
        workers = workers or usable_cores()
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
        wanted = TILE_NBYTES if workers <= FEW_WORKERS else LARGE_TILE_NBYTES
        return cls(workers, min(wanted, room // (3 * workers)))


def _text(nbytes: int) -> str:
    """A number of bytes as it was probably meant."""
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes:,} bytes"


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
    report = CastReport()
    written: list[Written] = []
    errors: list[BaseException] = []
    started, stop, lock = threading.Event(), threading.Event(), threading.Lock()
    # not Thread.join: in Python 3.11, once interrupted, it takes a running thread for a finished one
    ended = [threading.Event() for _ in range(_threads(plan, limits))]
    schedule = FileSchedule(plan, limits.tile_nbytes, len(ended))
    empty = iter(outputs)

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
            # where blocks are memory this takes as long as half the writing, so workers share it
            while not stop.is_set() and (file := next(empty, None)) is not None:
                file.preallocate()
            while not stop.is_set() and (task := schedule.take(number)) is not None:
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
