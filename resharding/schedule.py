"""Who writes what when: the work of a plan by output file, handed to workers so that a file has one writer.

The kernel lets one writer at a time into a file, so workers who write to the same file wait for one another
however many cores there are. A worker therefore takes what goes into one file, up to its end; only where no
file is left that nobody writes does it join another. What cannot be taken apart by file without reading much
more, such as a matrix whose columns go to eight files, is work for all of these at once.

Bytes and checksums do not depend on it: every target byte has its place in the plan.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from math import prod

from ..tensors.boxes import intersect, narrow
from ..tensors.stored import Extent
from ..tensors.strided import DIRECT_RUN
from .plan import Job, Plan, Target, narrowed, run_nbytes
from .tiles import Box, tile_groups

TASK_NBYTES = 64 << 20
#: how far ahead of the readers the kernel is told what will be read
READ_AHEAD_NBYTES = 96 << 20
#: how many workers one file has when there are more of them than files: while one writes, another reads and
#: checksums, and more of them only wait; but where values are changed or turned, that is most of the work
WRITERS, WORKED_WRITERS = 2, 4
#: shorter runs of bytes cost the processor more than the memory
LONG_RUN_NBYTES = 64 << 10
#: how much more may be read so that a job can be taken apart by file
MORE_READ = 1.25

Task = tuple[Job, list[Box]]


class Queue:
    """What goes into the same files, in the order of the sources."""

    def __init__(self, files: frozenset[int], order: int) -> None:
        self.files, self.order = files, order
        #: bytes that nobody has taken yet
        self.left_nbytes = 0
        self._nbytes = self._copied_nbytes = 0
        self._parts: deque[tuple[Job, tuple[Target, ...]]] = deque()
        self._ahead: deque[tuple[Task, int, int]] = deque()
        self._ahead_nbytes = 0
        self._tasks: Iterator[Task] | None = None
        self._lock = threading.Lock()

    @property
    def share(self) -> float:
        """What a worker of this queue adds to the load of each of its files."""
        return 1 / len(self.files)

    def add(self, job: Job, targets: tuple[Target, ...]) -> None:
        self._parts.append((job, targets))
        nbytes = job.target_dtype.itemsize * sum(prod(target.shape) for target in targets)
        self.left_nbytes += nbytes
        self._nbytes += nbytes
        if copies_long_runs(job):
            self._copied_nbytes += nbytes

    @property
    def writers(self) -> int:
        """How many workers each of its files has at most."""
        return WRITERS if 2 * self._copied_nbytes > self._nbytes else WORKED_WRITERS

    def take(self, tile_nbytes: int, ahead_nbytes: int) -> Task | None:
        """The next task, with the kernel told what comes after it; None at the end."""
        with self._lock:
            if self._tasks is None:
                self._tasks = self._cut(tile_nbytes)
            while not self._ahead or self._ahead_nbytes < ahead_nbytes:
                task = next(self._tasks, None)
                if task is None:
                    break
                nbytes = _advise(*task)
                written = task[0].target_dtype.itemsize * sum(prod(shape) for _, shape in task[1])
                self._ahead.append((task, nbytes, written))
                self._ahead_nbytes += nbytes
            if not self._ahead:
                self.left_nbytes = 0
                return None
            task, nbytes, written = self._ahead.popleft()
            self._ahead_nbytes -= nbytes
            self.left_nbytes -= written
            return task

    def _cut(self, tile_nbytes: int) -> Iterator[Task]:
        while self._parts:
            job, targets = self._parts.popleft()
            if len(targets) < len(job.targets):
                job = narrowed(replace(job, targets=targets))
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


class FileSchedule:
    """The queues of a plan, and which worker is at which."""

    def __init__(self, plan: Plan, tile_nbytes: int, workers: int) -> None:
        self._tile_nbytes = tile_nbytes
        self._ahead_nbytes = READ_AHEAD_NBYTES // workers
        found: dict[frozenset[int], Queue] = {}
        for job in plan.jobs:
            for files, targets in _by_file(job):
                found.setdefault(files, Queue(files, len(found))).add(job, targets)
        self._queues = list(found.values())
        #: workers that write to each file; one of a queue with many files counts in part
        self._load: dict[int, float] = {file: 0.0 for files in found for file in files}
        self._held: dict[int, Queue] = {}
        self._lock = threading.Lock()

    def take(self, worker: int) -> Task | None:
        """The next task of a worker, by its number; None when there is nothing more for it to do."""
        while True:
            queue = self._held.get(worker) or self._choose(worker)
            if queue is None:
                return None
            task = queue.take(self._tile_nbytes, self._ahead_nbytes)
            if task is not None:
                return task
            self._leave(worker, queue)

    def _choose(self, worker: int) -> Queue | None:
        with self._lock:
            best: tuple[tuple[float, int, int], Queue] | None = None
            for queue in self._queues:
                load = max(self._load[file] for file in queue.files) + queue.share
                if load > queue.writers or not queue.left_nbytes:
                    continue
                # one that nobody is at, in the order of the sources; else the one that has most to do
                rank = (load, -queue.left_nbytes if load > queue.share else 0, queue.order)
                if best is None or rank < best[0]:
                    best = rank, queue
            if best is None:
                return None
            queue = self._held[worker] = best[1]
            for file in queue.files:
                self._load[file] += queue.share
            return queue

    def _leave(self, worker: int, queue: Queue) -> None:
        with self._lock:
            del self._held[worker]
            for file in queue.files:
                self._load[file] -= queue.share
            self._queues = [each for each in self._queues if each is not queue]


def copies_long_runs(job: Job) -> bool:
    """Whether a job waits for memory and disk, not for the processor: nothing is cast, decoded or turned."""
    itemsize = job.source_dtype.itemsize
    pieces: list[Extent | Target] = [*job.sources, *job.targets]
    return (
        job.source_dtype == job.target_dtype
        and not any(extent.file.stored_nbytes(itemsize) != itemsize for extent in job.sources)  # decoded
        and all(run_nbytes(piece, itemsize) >= LONG_RUN_NBYTES for piece in pieces)
    )


def _by_file(job: Job) -> list[tuple[frozenset[int], tuple[Target, ...]]]:
    """The targets of a job, apart by file where that costs no more reading."""
    by_file: dict[int, list[Target]] = {}
    for target in job.targets:
        by_file.setdefault(id(target.payload.file.whole), []).append(target)
    if len(by_file) > 1 and _parts_read_well(job, list(by_file.values())):
        return [(frozenset([file]), tuple(targets)) for file, targets in by_file.items()]
    return [(frozenset(by_file), job.targets)] if by_file else []


def _parts_read_well(job: Job, groups: list[list[Target]]) -> bool:
    """Whether the parts of a job read runs that are long, and little of it twice."""
    itemsize, elements = job.source_dtype.itemsize, 0
    for targets in groups:
        part = narrowed(replace(job, targets=tuple(targets)))
        elements += prod(part.shape)
        if elements > MORE_READ * prod(job.shape):
            return False
        whole = prod(part.shape) * itemsize
        if any(run_nbytes(extent, itemsize) < min(DIRECT_RUN, whole) for extent in part.sources):
            return False
    return True


def _advise(job: Job, boxes: list[Box]) -> int:
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
