"""The way of one tile: read from the boxes it meets, cast, checksummed, written to the target boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy

from ..tensors.boxes import Shape, intersect, narrow
from ..tensors.checksum import crc32, crc32_combine
from ..tensors.stored import contiguous_strides
from ..tensors.strided import Buffer, gather_runs, loops, read_strided
from .plan import Job, Payload
from .tiles import Box

#: (payload, offset in it, length, CRC-32)
Written = tuple[Payload, int, int, int]


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
