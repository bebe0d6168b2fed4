"""A plan: every tensor to be moved as a job of boxes, checked for coverage before a byte is written.

Both sides of a job are described in the same coordinates (the factors of the rule's view, see
:mod:`nemoconv.tensors.boxes`), so what has to move is the intersection of source and target boxes.
A conversion, a change of layout and a change of format are the same thing here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from math import prod

from ..errors import MappingError
from ..stores.output import OutputFile
from ..tensors.boxes import Shape, intersect, narrow
from ..tensors.byte_source import ByteSource
from ..tensors.dtypes import DType
from ..tensors.stored import Extent


class Payload:
    """One contiguous run of tensor bytes in an output file, and after the run its CRC-32."""

    __slots__ = ("crc32", "file", "name", "nbytes", "offset")

    def __init__(self, name: str, file: OutputFile, offset: int, nbytes: int) -> None:
        self.name, self.file, self.offset, self.nbytes = name, file, offset, nbytes
        self.crc32: int | None = None if nbytes else 0  # nothing is moved for a tensor without elements


@dataclass(frozen=True, slots=True)
class Target:
    """A box of a job that lies strided in a payload; ``offset`` counts from the payload's start."""

    payload: Payload
    offset: int
    start: Shape
    shape: Shape
    strides: Shape


@dataclass(frozen=True, slots=True)
class Job:
    """Move one logical tensor: fill every target box from the source boxes that meet it.

    ``fill`` allows target elements that no source holds (rows that pad a vocabulary): they become 0.
    ``discard`` allows source elements that no target takes (the same rows on the way back).
    """

    name: str
    shape: Shape
    source_dtype: DType
    target_dtype: DType
    sources: tuple[Extent, ...]
    targets: tuple[Target, ...]
    fill: bool = False
    discard: bool = False

    @property
    def position(self) -> tuple[str, int]:
        """Where its first source byte lies: jobs run in this order, so that disks read forwards."""
        return min((extent.file.position(extent.offset) for extent in self.sources), default=("", 0))

    @property
    def target_nbytes(self) -> int:
        return self.target_dtype.itemsize * sum(prod(target.shape) for target in self.targets)

    @property
    def moves(self) -> int:
        """Strided copies this job takes: pairs of boxes that meet."""
        return sum(
            intersect(s.start, s.shape, t.start, t.shape) is not None
            for t in self.targets
            for s in self.sources
        )

    def check(self) -> None:
        """Raise MappingError unless sources tile what targets need and nothing else is left over."""
        for side, boxes in (("source", _boxes(self.sources)), ("target", _boxes(self.targets))):
            for a, b in combinations(boxes, 2):
                if intersect(*a, *b):
                    raise MappingError(f"{self.name}: two {side} pieces overlap")
        met = 0
        for target in self.targets:
            for source in self.sources:
                common = intersect(source.start, source.shape, target.start, target.shape)
                met += prod(common[1]) if common else 0
        wanted = sum(prod(target.shape) for target in self.targets)
        given = sum(prod(source.shape) for source in self.sources)
        if met != wanted and not self.fill:
            raise MappingError(f"{self.name}: {wanted - met:,} of {wanted:,} target elements have no source")
        if met != given and not self.discard:
            raise MappingError(f"{self.name}: {given - met:,} of {given:,} source elements have no target")


def _boxes(pieces: tuple[Extent, ...] | tuple[Target, ...]) -> list[tuple[Shape, Shape]]:
    return [(piece.start, piece.shape) for piece in pieces]


@dataclass(slots=True)
class Plan:
    """All jobs of a run. Building it reads headers only."""

    jobs: list[Job] = field(default_factory=list)

    def check(self) -> None:
        for job in self.jobs:
            job.check()

    def sources(self) -> list[ByteSource]:
        """Each source file once."""
        files = {id(e.file): e.file for job in self.jobs for e in job.sources}.values()
        return list({id(origin): origin for file in files for origin in file.origins}.values())

    def outputs(self) -> list[OutputFile]:
        """Each output file once; the members of an archive are one file."""
        files = [target.payload.file.whole for job in self.jobs for target in job.targets]
        return list({id(file): file for file in files}.values())

    @property
    def read_nbytes(self) -> int:
        return sum(
            extent.file.stored_nbytes(prod(extent.shape) * job.source_dtype.itemsize)
            for job in self.jobs
            for extent in job.sources
        )

    @property
    def write_nbytes(self) -> int:
        return sum(job.target_nbytes for job in self.jobs)

    @property
    def moves(self) -> int:
        return sum(job.moves for job in self.jobs)


def run_nbytes(piece: Extent | Target, itemsize: int) -> int:
    """Bytes of a box that lie side by side in its file."""
    length = itemsize
    for count, step in zip(reversed(piece.shape), reversed(piece.strides), strict=True):
        if count > 1 and step != length:
            break
        length *= count
    return length


def narrowed(job: Job) -> Job:
    """The job without what lies around all its targets: it would be read for nobody."""
    starts = list(zip(*(target.start for target in job.targets), strict=True))
    ends = [
        max(target.start[axis] + target.shape[axis] for target in job.targets) for axis in range(len(starts))
    ]
    low = tuple(map(min, starts))
    shape = tuple(end - first for first, end in zip(low, ends, strict=True))
    if shape == job.shape:
        return job

    def moved(start: Shape) -> Shape:
        return tuple(a - b for a, b in zip(start, low, strict=True))

    sources = []
    for extent in job.sources:
        common = intersect(extent.start, extent.shape, low, shape)
        if common is not None:
            piece = narrow(extent, *common)
            sources.append(piece._replace(start=moved(piece.start)))
    targets = tuple(replace(target, start=moved(target.start)) for target in job.targets)
    return replace(job, shape=shape, sources=tuple(sources), targets=targets)
