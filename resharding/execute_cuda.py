"""Carry out a plan with casts and strided copies on a GPU: the bytes are those that the CPU would write.

Files are read into pinned memory, tiles cross to the device, are cast and put into the order in which
they will be written, come back into pinned memory and are written from there. Every worker has a stream
and buffers of its own, so reading, both directions of the bus and writing overlap. What moves in long runs
and keeps its type stays on the host: two crossings could only make it slower. Of quantized tensors codes and
scales cross, and are decoded on the device.

A tile with a NaN is decoded and cast on the host, since processors disagree on the bits of such NaNs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Final

from ..tensors.boxes import Shape, intersect
from ..tensors.stored import contiguous_strides
from ..tensors.strided import DIRECT_RUN, gather_runs, loops, split_run
from . import execute as host
from .decode import cuda as decode_cuda
from .execute import Limits
from .plan import Job, Plan, Target
from .tiles import Box
from .worker import CastReport, Worker, Written, merge_written, write_views

if TYPE_CHECKING:
    import torch

#: tiles are larger than on the host: one launch for each costs the same however large it is
_TILE_NBYTES: Final = 8 << 20
#: changes of type that one rounding does alike on both processors, but for NaNs
_CASTS: Final = frozenset(
    (source, target)
    for source in ("float32", "bfloat16", "float16")
    for target in ("float64", "float32", "bfloat16", "float16")
    if source != target
) | {("float64", "float32")}
_BY_SIZE: Final = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


def execute(plan: Plan, limits: Limits, progress: Callable[[int], None] | None = None) -> CastReport:
    """As :func:`nemoconv.resharding.execute.execute`, on the present CUDA device."""
    roomy = limits.tile_nbytes == host.TILE_NBYTES
    larger = Limits(limits.workers, _TILE_NBYTES if roomy else limits.tile_nbytes)
    return host.execute(plan, larger, progress, CudaWorker)


class CudaWorker(Worker):
    """One thread's pinned buffers and its stream."""

    def __init__(self, tile_nbytes: int, report: CastReport) -> None:
        import torch

        super().__init__(tile_nbytes, report)
        self.pinned, self.back = (
            torch.empty(tile_nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        )
        self.tile = self.pinned.numpy()
        self.counts = torch.zeros(3, dtype=torch.int64, pin_memory=True)
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.decoder: decode_cuda.DeviceDecoder | None = None

    def run(self, job: Job, boxes: list[Box], done: Callable[[int], None]) -> list[Written]:
        gains, encoded = _gains(job), _decodes(job)
        if not gains and not encoded:
            return super().run(job, boxes, done)
        written: list[Written] = []
        for start, shape in boxes:
            before = len(written)
            parts = self._read_encoded(job, start, shape) if encoded else None
            places = self._cross(job, start, shape, parts) if parts else None
            if places is None:
                self._read(job, start, shape)
                if gains and not parts:
                    places = self._cross(job, start, shape)
            if places is None:
                self._write(job, start, shape, self._convert(job, prod(shape)), written)
            else:
                self._write_back(job, places, written)
            done(sum(length for _, _, length, _ in written[before:]))
        return merge_written(written)

    def _read_encoded(self, job: Job, start: Shape, shape: Shape) -> list[decode_cuda.CodedPart] | None:
        """Read codes and scales of a tile into ``pinned``; None, with nothing read, if they do not fit."""
        parts = decode_cuda.parts_of(job, start, shape)
        if parts is None or sum(part.nbytes for part in parts) > len(self.tile):
            return None
        at = 0
        for part in parts:
            part.read(self.tile[at : at + part.nbytes], self.scratch)
            at += part.nbytes
        return parts

    def _cross(
        self, job: Job, start: Shape, shape: Shape, parts: list[decode_cuda.CodedPart] | None = None
    ) -> list[_Place] | None:
        """Decode, cast and order a tile on the device; where its parts lie in ``back``. None: it holds a NaN
        whose bits could differ."""
        import torch

        casts = job.source_dtype != job.target_dtype
        held = sum(part.nbytes for part in parts) if parts else prod(shape) * job.source_dtype.itemsize
        places, at = [], 0
        with torch.cuda.stream(self.stream), torch.no_grad():
            there = self.pinned[:held].to("cuda", non_blocking=True)
            source_dtype = getattr(torch, job.source_dtype.name)
            if parts:
                self.decoder = self.decoder or decode_cuda.DeviceDecoder()
                values = decode_cuda.assemble(parts, self.decoder, there, (start, shape), source_dtype)
            else:
                same = source_dtype if casts else getattr(torch, _BY_SIZE[job.source_dtype.itemsize])
                values = there.view(same).view(shape)
            box = values.to(getattr(torch, job.target_dtype.name)) if casts else values
            if casts or parts:
                self._count(job, values, box)
            for target in job.targets:
                common = intersect(target.start, target.shape, start, shape)
                if common is None:
                    continue
                place = _Place(target, *common, at)
                index = tuple(
                    slice(a - b, a - b + n) for a, b, n in zip(place.low, start, place.size, strict=True)
                )
                part = box[index].permute(place.order).contiguous().view(-1).view(torch.uint8)
                self.back[at : at + part.numel()].copy_(part, non_blocking=True)
                places.append(place)
                at += part.numel()
            self.stream.synchronize()
        if not casts and not parts:
            return places
        nans, lost, rounded = self.counts.tolist()
        if nans:
            return None
        for counts, found in ((self.report.overflows, lost), (self.report.rounded, rounded)):
            if found:
                counts[job.name] = counts.get(job.name, 0) + found
        return places

    def _count(self, job: Job, values: torch.Tensor, result: torch.Tensor) -> None:
        """Whether there are NaNs, finite values that became infinite, and float32 that are no bfloat16."""
        import torch

        nan = values.isnan().any().to(torch.int64)  # far faster than to count them
        if job.source_dtype == job.target_dtype:
            self.counts.copy_(torch.stack([nan, *[torch.zeros_like(nan)] * 2]), non_blocking=True)
            return
        found = [nan, (result.isinf() & values.isfinite()).sum()]
        if (job.source_dtype.name, job.target_dtype.name) == ("float32", "bfloat16"):
            found.append((values.view(torch.int32) & 0xFFFF).count_nonzero())
        else:
            found.append(torch.zeros_like(found[0]))
        self.counts.copy_(torch.stack(found), non_blocking=True)

    def _write_back(self, job: Job, places: list[_Place], written: list[Written]) -> None:
        itemsize = job.target_dtype.itemsize
        data = self.back.numpy()
        for place in places:
            strides = [place.target.strides[axis] for axis in place.order]
            size = tuple(place.size[axis] for axis in place.order)
            axes = loops(size, tuple(strides), contiguous_strides(size, itemsize))
            offset = place.offset
            for run, views in gather_runs(axes, itemsize, data[place.at :], self.scratch):
                written.append(write_views(place.target.payload, offset + run, views))


class _Place:
    """The part of a target in a tile, and where it lies in the buffer, in the order of the file."""

    __slots__ = ("at", "low", "offset", "order", "size", "target")

    def __init__(self, target: Target, low: Shape, size: Shape, at: int) -> None:
        self.target, self.low, self.size, self.at = target, low, size, at
        self.order = sorted(range(len(size)), key=lambda axis: -target.strides[axis])
        self.offset = target.offset + sum(
            (a - b) * step for a, b, step in zip(low, target.start, target.strides, strict=True)
        )


def _gains(job: Job) -> bool:
    """Whether the device can do something for a job: cast it, or gather short runs into long ones."""
    source, target = job.source_dtype, job.target_dtype
    if source != target:
        return (source.name, target.name) in _CASTS
    return any(_short_runs(job, part) for part in job.targets)


def _decodes(job: Job) -> bool:
    """Whether a job reads quantized tensors that the device decodes, and casts."""
    source, target = job.source_dtype, job.target_dtype
    return decode_cuda.decodable(job) and (source == target or (source.name, target.name) in _CASTS)


def _short_runs(job: Job, target: Target) -> bool:
    itemsize = job.target_dtype.itemsize
    outer, run = split_run(
        loops(target.shape, target.strides, contiguous_strides(job.shape, itemsize)), itemsize
    )
    return bool(outer) and run < DIRECT_RUN
