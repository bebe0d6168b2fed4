"""Plan a conversion: everything that headers can tell is decided and checked before a byte is written."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from nemoconv import __version__
from nemoconv.converters import manifest
from nemoconv.converters.base import Checkpoint, Converter, Model, Request, WriteOptions, Writer
from nemoconv.converters.binding import Bound, Wanted, wanted
from nemoconv.errors import CorruptCheckpoint, LayoutError, MappingError
from nemoconv.formats.dtypes import DType
from nemoconv.formats.output import OutputDirectory
from nemoconv.formats.tensors import Extent, contiguous_strides
from nemoconv.mappings.config_fields import Value
from nemoconv.mappings.rules import padded_vocab_size
from nemoconv.mappings.table import Instance, check_layout
from nemoconv.resharding.layout import Layout
from nemoconv.resharding.plan import Job, Payload, Plan, Target

if TYPE_CHECKING:
    from nemoconv.resharding.execute import Limits

DEFAULT_MAX_MEMORY = 512 << 20
#: what a job and its boxes take in memory, measured on a 405B-shaped plan
_JOB_NBYTES = 2_500


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion does (``plan``) or did (``convert``). Sizes are in bytes, times in seconds."""

    source: str
    source_format: str
    target: str
    target_format: str
    architecture: str
    layout: str
    parameters: int
    tensors_in: int
    tensors_out: int
    moves: int
    read_nbytes: int
    write_nbytes: int
    peak_memory_nbytes: int
    free_disk_nbytes: int
    files: int
    plan_seconds: float
    inert_keys: list[str]
    ignored_keys: list[str]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verified: bool = False

    def as_dict(self) -> dict[str, Value]:
        return asdict(self)


@dataclass(slots=True)
class Conversion:
    """A planned conversion: everything is decided and checked, nothing is written."""

    source: Checkpoint
    output: OutputDirectory
    writer: Writer
    plan: Plan
    payloads: list[Payload]
    limits: Limits
    report: Report
    header: dict[str, Value]


def prepare(
    source: Checkpoint,
    output: OutputDirectory,
    to: Converter,
    options: WriteOptions,
    *,
    allow_ignored: Sequence[str] = (),
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Conversion:
    """Plan a conversion and check everything that headers can tell.

    Raises MappingError, UnsupportedConfig, LayoutError, CorruptCheckpoint.
    """
    from nemoconv.resharding.execute import Limits

    started = time.perf_counter()
    model = source.model(allow_ignored)
    bound = Bound(source, model)
    notes = [f"{count:,} {what} not converted" for what, count in source.skipped().items()]
    notes += _settle_dtype(bound, model, options)
    sizes = _target_sizes(bound, to, options)
    notes += _vocabulary_notes(bound.sizes["vocab"], sizes["vocab"], sizes["true_vocab"])
    writer = to.create(output, model, options, sizes)
    plan, payloads = _build_plan(bound, writer, sizes, options)
    plan.check()
    notes += _check_tied(source, bound)
    _check_zeros(bound)
    plan_nbytes = _JOB_NBYTES * len(plan.jobs)
    limits = Limits.within(max_memory, plan_nbytes)
    report = Report(
        source=str(source.path),
        source_format=source.format,
        target=str(output.target),
        target_format=to.name,
        architecture=model.table.architecture,
        layout=str(options.layout),
        parameters=sum(_count(bound, instance) for instance in bound.instances),
        tensors_in=len(bound.names),
        tensors_out=writer.tensor_count,
        moves=plan.moves,
        read_nbytes=plan.read_nbytes,
        write_nbytes=plan.write_nbytes,
        peak_memory_nbytes=limits.nbytes + plan_nbytes + _resident_nbytes(),
        free_disk_nbytes=output.free_bytes(),
        files=len({payload.file.name for payload in payloads}),
        plan_seconds=time.perf_counter() - started,
        inert_keys=sorted(model.inert),
        ignored_keys=model.ignored,
        notes=notes,
    )
    header: dict[str, Value] = {
        "written_by": f"nemoconv {__version__}",
        "format": to.name,
        "architecture": model.table.architecture,
        "source_format": source.format,
        "dtype": options.dtype.name if options.dtype else None,
        "layout": asdict(options.layout),
        "model_config": model.config,
        "padded_vocab_size": sizes["vocab"],
        "inert_config": model.inert,
        "ignored_config_keys": model.ignored,
    }
    return Conversion(source, output, writer, plan, payloads, limits, report, header)


def _settle_dtype(bound: Bound, model: Model, options: WriteOptions) -> list[str]:
    """Set ``params_dtype`` to what will be written; a note if the source's config said otherwise."""
    if options.dtype is not None:
        model.config["params_dtype"] = options.dtype.name
        return []
    stated, usual = model.config.get("params_dtype"), bound.usual_dtype().name
    model.config["params_dtype"] = usual
    if stated in (None, usual):
        return []
    return [f"the config says {stated}, the tensors are {usual}: they are written as they are"]


def _target_sizes(bound: Bound, to: Converter, options: WriteOptions) -> dict[str, int]:
    """Sizes of the target's tensors. Raises LayoutError if the layout does not divide them."""
    sizes = {**bound.sizes, "vocab": bound.sizes["true_vocab"]}
    if to.side == "hf":
        if options.layout != Layout():
            raise LayoutError(
                "a Hugging Face directory has no parallel layout", hint="leave out --tp and --pp"
            )
        return sizes
    divisor, count = options.make_vocab_size_divisible_by, options.layout.tensor_parallel_size
    sizes["vocab"] = padded_vocab_size(sizes["true_vocab"], divisor, count)
    check_layout(bound.model.table, bound.model.config, sizes, options.layout)
    return sizes


def _vocabulary_notes(held: int, written: int, true: int) -> list[str]:
    notes = []
    if held > true:
        notes.append(f"{held - true:,} rows of vocabulary padding left out")
    if written > true:
        notes.append(f"vocabulary padded from {true:,} to {written:,} rows with zeros")
    return notes


def _build_plan(
    bound: Bound, writer: Writer, sizes: dict[str, int], options: WriteOptions
) -> tuple[Plan, list[Payload]]:
    wide = {**sizes, "vocab": max(sizes["vocab"], bound.sizes["vocab"])}
    asked: list[tuple[Instance, DType, DType, list[Wanted]]] = []
    requests: dict[Request, None] = {}
    for instance in bound.instances:
        source = bound.dtype(instance)
        casts = source.is_floating_point and not instance.rule.keeps_dtype
        target = options.dtype if options.dtype and casts else source
        boxes = wanted(instance, writer.side, sizes, options.layout, target)
        requests.update(dict.fromkeys(box.request for box in boxes))
        asked.append((instance, source, target, boxes))
    payloads = dict(zip(requests, writer.reserve(list(requests)), strict=True))
    plan = Plan()
    for instance, source, target, boxes in asked:
        space = bound.space(instance.rule, wide)
        targets: list[Target] = []
        for box in boxes:
            request = box.request
            strides = contiguous_strides(request.box, target.itemsize)
            offset = sum((a - b) * n for a, b, n in zip(box.start, request.start, strides, strict=True))
            # a part's extent counts from its own start, a chunk's from the tensor's
            start = box.start if box.part is None else (0,) * len(box.box)
            extent = Extent(None, offset, start, box.box, strides)  # type: ignore[arg-type]
            for _, place, low, shape, steps in space.place(box.part, sizes, extent):
                targets.append(Target(payloads[request], place, low, shape, steps))
        sources = bound.extents(instance, space)
        loose = instance.rule.pad is not None or not instance.in_hf
        plan.jobs.append(
            Job(instance.nemo, space.shape, source, target, sources, tuple(targets), loose, loose)
        )
    return plan, list(payloads.values())


def _count(bound: Bound, instance: Instance) -> int:
    count = 1
    for factor in instance.rule.view.factors:
        count *= bound.sizes["true_vocab"] if factor == "vocab" else bound.sizes[factor]
    return count


def _check_zeros(bound: Bound) -> None:
    """Tensors that the Hugging Face side leaves out, because the config says so, must hold zeros."""
    from nemoconv.converters.compare import first_nonzero

    for instance in bound.instances:
        if instance.in_hf or bound.checkpoint.side == "hf":
            continue
        tensor = bound.checkpoint.stored(instance.nemo)
        place = first_nonzero(tensor)
        if place is not None:
            raise CorruptCheckpoint(
                f"{bound.checkpoint.path}: {tensor.name} should be zero, as {manifest.NAME} says, "
                f"but is not at {place}",
                hint=f"if the model was trained further, remove {manifest.NAME}",
            )


def _check_tied(source: Checkpoint, bound: Bound) -> list[str]:
    """A tied model that holds its embedding twice: the copies must be equal, and one is dropped."""
    from nemoconv.converters.compare import first_difference

    notes = []
    for copy, original in bound.redundant:
        a, b = source.stored(copy), source.stored(original)
        difference = None if a.shape == b.shape and a.dtype == b.dtype else "their shapes or dtypes differ"
        difference = difference or first_difference(a, b)
        if difference:
            raise MappingError(
                f"{source.path}: the config ties {copy} to {original}, but {difference}",
                hint='set "tie_word_embeddings" to false in config.json if both are meant',
            )
        notes.append(f"{copy} equals {original}, to which the config ties it, and is left out")
    return notes


def disk_shortage(report: Report) -> str | None:
    """What is missing on the target's file system, None if nothing is."""
    if report.free_disk_nbytes >= report.write_nbytes + (16 << 20):  # frames and small files besides
        return None
    return (
        f"{report.target}: {report.write_nbytes / 1e9:,.1f} GB are needed, "
        f"{report.free_disk_nbytes / 1e9:,.1f} GB are free"
    )


def _resident_nbytes() -> int:
    """Memory of the process before any buffer."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak so far, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
