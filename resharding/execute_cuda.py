"""Carry out a plan with casts and strided copies on a GPU: the bytes are those that the CPU would write.

Files are read into pinned memory, tiles cross to the device, are cast and put into the order in which
they will be written, come back into pinned memory and are written from there. Every worker has a stream
and buffers of its own, so reading, both directions of the bus and writing overlap. What moves in long runs
and keeps its type stays on the host: two crossings could only make it slower.

Of quantized tensors codes and scales cross the bus, and their products are taken on the device. The
arithmetic is that of :mod:`nemoconv.resharding.decode.arithmetic`: every code is exact in bfloat16, a product
is taken in float32 and rounded once. What a tile needs is read in the order of the file; the device turns it
round.

A tile with a NaN is decoded and cast on the host, since processors disagree on the bits of such NaNs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy

from ..tensors.boxes import Shape, intersect, narrow
from ..tensors.stored import Extent, StoredTensor, contiguous_strides
from ..tensors.strided import DIRECT_RUN, Buffer, gather_runs, loops, read_strided, split_run
from . import execute as host
from .decode.arithmetic import MXFP4_GROUP, MXFP4_NBYTES, Array, e8m0_values, fp4_pairs, scale_values
from .decode.quantized import MXFP4, BlockScaledFP8, DecodedFile
from .execute import Limits
from .plan import Job, Plan, Target
from .tiles import Box
from .worker import CastReport, Worker, Written, merge_written, write_views

if TYPE_CHECKING:
    import torch

#: what each part of a tile begins at a multiple of, in bytes
_ALIGNMENT: Final = 16


class DeviceDecoder:
    """The tables of codes, in the memory of a device; used in the stream that is current when it is made."""

    def __init__(self, device: str = "cuda") -> None:
        import ml_dtypes
        import torch

        pairs = fp4_pairs().view(numpy.float32).astype(ml_dtypes.bfloat16).view(numpy.int32)
        two = numpy.empty((256, 256, 2), numpy.int32)  # [second byte, first byte]: a little-endian int16
        two[..., 0], two[..., 1] = pairs, pairs[:, None]
        # from -32768 on, as the bytes are looked up as a signed number
        fours = numpy.roll(two.view(numpy.int64).ravel(), 1 << 15)
        self._fours = torch.from_numpy(fours).to(device)
        self._exponents = torch.from_numpy(e8m0_values().astype(numpy.float32)).to(device)
        self._zero = torch.tensor([1 << 15], dtype=torch.int32).to(device)

    def fp8(
        self,
        codes: torch.Tensor,
        kind: str,
        scales: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """[R, C] of ``dtype`` = codes [R, C] (uint8) times ``scales[rows][:, columns]``.

        scales float32 [Rs, Cs]; rows [R] and columns [C] int32, not looked at where Rs or Cs is 1. ``kind``
        is ``float8_e4m3fn`` or ``float8_e5m2``.
        """
        import torch

        if scales.shape[1] > 1:
            scales = scales.index_select(1, columns)
        if scales.shape[0] > 1:
            scales = scales.index_select(0, rows)
        values = codes.view(getattr(torch, kind)).to(torch.bfloat16)
        return torch.mul(values, scales, out=torch.empty(codes.shape, dtype=dtype, device=codes.device))

    def mxfp4(self, packed: torch.Tensor, exponents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[G, 32] of ``dtype`` = packed [G, 16] (uint8) times 2 to the power of exponents [G] (uint8)."""
        import torch

        groups = len(exponents)
        index = torch.add(packed.view(torch.int16).view(-1), self._zero)
        values = self._fours.index_select(0, index).view(torch.bfloat16).view(groups, MXFP4_GROUP)
        scales = self._exponents.index_select(0, exponents.to(torch.int32))[:, None]
        return torch.mul(values, scales, out=torch.empty(values.shape, dtype=dtype, device=packed.device))


class CodedPart(ABC):
    """A box of a tile and what of a quantized tensor makes it up.

    ``low`` and ``size`` place it in the coordinates of the job; ``order`` are its axes in the order of the
    file. ``nbytes`` is the room that what it reads takes in a buffer.
    """

    nbytes: int

    def __init__(self, low: Shape, size: Shape, order: list[int]) -> None:
        self.low, self.size, self.order = low, size, order

    @abstractmethod
    def read(self, buffer: Buffer, scratch: Buffer) -> None:
        """Fill the first ``nbytes`` of ``buffer`` with codes, scales and where the scales belong."""

    @abstractmethod
    def _decode(self, decoder: DeviceDecoder, data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The elements in the order of the file, from the bytes that ``read`` gave."""

    def decode(self, decoder: DeviceDecoder, data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The box of shape ``size``, from uint8 ``data`` on the device."""
        values = self._decode(decoder, data, dtype).reshape([self.size[axis] for axis in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return values.permute(back)


class _FP8Part(CodedPart):
    def __init__(
        self, low: Shape, size: Shape, order: list[int], encoding: BlockScaledFP8, first: int, steps: Shape
    ) -> None:
        super().__init__(low, size, order)
        self.encoding, self.first, self.steps = encoding, first, steps
        *_, height, width = encoding.shape
        counts = [size[axis] for axis in order]
        across = [step >= width and count > 1 for count, step in zip(counts, steps, strict=True)]
        row_axes = [(n, s // width) for n, s, row in zip(counts, steps, across, strict=True) if row]
        column_axes = [(n, s) for n, s, row in zip(counts, steps, across, strict=True) if not row and n > 1]
        row, column = divmod(first, width)
        matrix, inside = numpy.divmod(_positions(row, row_axes), height)
        rows = matrix * encoding.grid[0] + inside // encoding.block[0]
        columns = _positions(column, column_axes) // encoding.block[1]
        self.low_row, self.low_column = int(rows.min()), int(columns.min())
        self.rows = (rows - self.low_row).astype(numpy.int32)
        self.columns = (columns - self.low_column).astype(numpy.int32)
        self.scales_shape = int(self.rows.max()) + 1, int(self.columns.max()) + 1
        sizes = prod(size), 4 * prod(self.scales_shape), 4 * len(rows), 4 * len(columns)
        self.sizes = [-(-nbytes // _ALIGNMENT) * _ALIGNMENT for nbytes in sizes]
        self.nbytes = sum(self.sizes)

    @staticmethod
    def fits(encoding: BlockScaledFP8, first: int, counts: list[int], steps: Shape) -> bool:
        """Whether every axis runs along the rows or along the columns, and so do scales."""
        width = encoding.shape[-1]
        reach = first % width
        for count, step in zip(counts, steps, strict=True):
            if count > 1 and step < width:
                reach += (count - 1) * step
            elif count > 1 and step % width:
                return False
        return reach < width

    def read(self, buffer: Buffer, scratch: Buffer) -> None:
        counts = tuple(self.size[axis] for axis in self.order)
        _read_bytes(self.encoding.codes, self.first, counts, self.steps, buffer, scratch)
        codes, scales, rows, _ = (sum(self.sizes[:n]) for n in (1, 2, 3, 4))
        _put(buffer, codes, scale_values(self._scales(scratch)))
        _put(buffer, scales, self.rows)
        _put(buffer, rows, self.columns)

    def _scales(self, scratch: Buffer) -> Array:
        tensor, grid = self.encoding.scales, self.encoding.grid
        itemsize = tensor.dtype.itemsize
        held = numpy.empty(prod(self.scales_shape) * itemsize, numpy.uint8)
        first = (self.low_row * grid[1] + self.low_column) * itemsize
        shape = self.scales_shape[0], self.scales_shape[1] * itemsize
        _read_bytes(tensor, first, shape, (grid[1] * itemsize, 1), held, scratch)
        return held.view(tensor.dtype.numpy())

    def _decode(self, decoder: DeviceDecoder, data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        import torch

        codes, scales, rows, columns = torch.split(data[: self.nbytes], self.sizes)
        height, width = len(self.rows), len(self.columns)
        return decoder.fp8(
            codes[: height * width].view(height, width),
            self.encoding.codes.dtype.name,
            scales[: 4 * prod(self.scales_shape)].view(torch.float32).view(self.scales_shape),
            rows[: 4 * height].view(torch.int32),
            columns[: 4 * width].view(torch.int32),
            dtype,
        )


class _MXFP4Part(CodedPart):
    def __init__(
        self,
        low: Shape,
        size: Shape,
        order: list[int],
        encoding: MXFP4,
        first: int,
        axes: list[tuple[int, int]],
    ) -> None:
        super().__init__(low, size, order)
        self.encoding, self.outer, (self.run, _) = encoding, axes[:-1], axes[-1]
        self.group, self.skip = divmod(first, MXFP4_GROUP)
        self.groups = -(-(self.skip + self.run) // MXFP4_GROUP)  # of each run, its ends made whole
        self.count = prod(count for count, _ in self.outer) * self.groups
        self.at = self.count * MXFP4_NBYTES
        self.nbytes = self.at + -(-self.count // _ALIGNMENT) * _ALIGNMENT

    def read(self, buffer: Buffer, scratch: Buffer) -> None:
        for tensor, width, target in (
            (self.encoding.codes, MXFP4_NBYTES, buffer),
            (self.encoding.scales, 1, buffer[self.at :]),
        ):
            shape = (*(count for count, _ in self.outer), self.groups * width)
            steps = (*(step // MXFP4_GROUP * width for _, step in self.outer), 1)
            _read_bytes(tensor, self.group * width, shape, steps, target, scratch)

    def _decode(self, decoder: DeviceDecoder, data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        packed, exponents = data[: self.at], data[self.at : self.at + self.count]
        values = decoder.mxfp4(packed.view(self.count, MXFP4_NBYTES), exponents, dtype)
        return values.view(-1, self.groups * MXFP4_GROUP)[:, self.skip : self.skip + self.run]


def decodable(job: Job) -> bool:
    """Whether all that a job reads is of encodings known here."""
    return bool(job.sources) and all(
        isinstance(extent.file, DecodedFile)
        and type(extent.file.encoding) in (BlockScaledFP8, MXFP4)
        and extent.file.dtype == job.source_dtype
        for extent in job.sources
    )


def parts_of(job: Job, start: Shape, shape: Shape) -> list[CodedPart] | None:
    """The parts of a tile of a :func:`decodable` job, None where one lies too oddly for the device."""
    parts = []
    for extent in job.sources:
        common = intersect(extent.start, extent.shape, start, shape)
        if common:
            part = _part(narrow(extent, *common), *common)
            if part is None:
                return None
            parts.append(part)
    return parts


def _part(piece: Extent, low: Shape, size: Shape) -> CodedPart | None:
    assert isinstance(piece.file, DecodedFile)
    encoding, itemsize = piece.file.encoding, piece.file.dtype.itemsize
    first = piece.offset // itemsize
    order = sorted(range(len(size)), key=lambda axis: (size[axis] > 1, -piece.strides[axis]))
    counts, steps = [size[axis] for axis in order], tuple(piece.strides[axis] // itemsize for axis in order)
    if isinstance(encoding, BlockScaledFP8):
        fits = _FP8Part.fits(encoding, first, counts, steps)
        return _FP8Part(low, size, order, encoding, first, steps) if fits else None
    assert isinstance(encoding, MXFP4)
    axes = [(n, step) for n, step, _ in loops(tuple(counts), steps, contiguous_strides(tuple(counts), 1))]
    if not axes or axes[-1][1] != 1:
        axes.append((1, 1))
    if any(step % MXFP4_GROUP for _, step in axes[:-1]):
        return None
    return _MXFP4Part(low, size, order, encoding, first, axes)


def assemble(
    parts: list[CodedPart],
    decoder: DeviceDecoder,
    data: torch.Tensor,
    tile: tuple[Shape, Shape],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The elements of a tile (start, shape), from the bytes of its parts, one after another; 0 elsewhere."""
    import torch

    start, shape = tile
    if len(parts) == 1 and parts[0].size == shape:
        return parts[0].decode(decoder, data, dtype)
    box = torch.zeros(shape, dtype=dtype, device=data.device)
    at = 0
    for part in parts:
        index = tuple(slice(a - b, a - b + n) for a, b, n in zip(part.low, start, part.size, strict=True))
        box[index] = part.decode(decoder, data[at : at + part.nbytes], dtype)
        at += part.nbytes
    return box


def _positions(first: int, axes: list[tuple[int, int]]) -> Array:
    """Where every iteration of nested loops (count, step) is, int64, flat."""
    found: Array = numpy.array([first])
    for count, step in axes:
        found = (found[:, None] + numpy.arange(count) * step).ravel()
    return found


def _read_bytes(
    tensor: StoredTensor, first: int, shape: Shape, steps: Shape, target: Buffer, scratch: Buffer
) -> None:
    """Bytes of a tensor in C order in one extent, from its byte ``first`` on, ``steps`` apart."""
    (extent,) = tensor.extents
    axes = loops(shape, steps, contiguous_strides(shape, 1))
    read_strided(extent.file, extent.offset + first, axes, 1, target, scratch)


def _put(buffer: Buffer, at: int, values: Any) -> None:
    data = numpy.ascontiguousarray(values).view(numpy.uint8).ravel()
    buffer[at : at + len(data)] = data


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
    roomy = limits.tile_nbytes >= host.TILE_NBYTES
    # pinned memory is held twice; a few workers keep the bus busy
    workers = min(limits.workers, host.FEW_WORKERS)
    larger = Limits(workers, _TILE_NBYTES if roomy else limits.tile_nbytes)
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
        self.decoder: DeviceDecoder | None = None

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

    def _read_encoded(self, job: Job, start: Shape, shape: Shape) -> list[CodedPart] | None:
        """Read codes and scales of a tile into ``pinned``; None, with nothing read, if they do not fit."""
        parts = parts_of(job, start, shape)
        if parts is None or sum(part.nbytes for part in parts) > len(self.tile):
            return None
        at = 0
        for part in parts:
            part.read(self.tile[at : at + part.nbytes], self.scratch)
            at += part.nbytes
        return parts

    def _cross(
        self, job: Job, start: Shape, shape: Shape, parts: list[CodedPart] | None = None
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
                self.decoder = self.decoder or DeviceDecoder()
                values = assemble(parts, self.decoder, there, (start, shape), source_dtype)
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
    return decodable(job) and (source == target or (source.name, target.name) in _CASTS)


def _short_runs(job: Job, target: Target) -> bool:
    itemsize = job.target_dtype.itemsize
    outer, run = split_run(
        loops(target.shape, target.strides, contiguous_strides(job.shape, itemsize)), itemsize
    )
    return bool(outer) and run < DIRECT_RUN
