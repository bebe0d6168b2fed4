"""Convert a checkpoint: plan on headers, check, execute, commit."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoconv import __version__
from nemoconv.converters import manifest
from nemoconv.converters.base import Checkpoint, Converter, WriteOptions, Writer
from nemoconv.converters.binding import Bound, requests
from nemoconv.converters.registry import converter, open_checkpoint
from nemoconv.errors import (
    CorruptCheckpoint,
    LayoutError,
    MappingError,
    OutputError,
    UsageError,
)
from nemoconv.formats.dtypes import BY_NAME
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

#: (phase, bytes done, bytes in all); phases are "write", "flush", "verify"
Progress = Callable[[str, int, int], None]


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
    bound: Bound
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

    Raises MappingError, UnsupportedConfig, LayoutError, CorruptCheckpoint, or OutputError when the
    disk is too small.
    """
    from nemoconv.resharding.execute import Limits

    started = time.perf_counter()
    model = source.model(allow_ignored)
    bound = Bound(source, model)
    notes = [f"{count:,} {what} not converted" for what, count in source.skipped().items()]
    notes += _check_tied(source, bound)
    _check_zeros(bound)
    sizes = dict(bound.sizes)
    sizes["vocab"] = sizes["true_vocab"]
    if to.side == "nemo":
        tp = options.layout.tensor_parallel_size
        sizes["vocab"] = padded_vocab_size(sizes["true_vocab"], options.make_vocab_size_divisible_by, tp)
        check_layout(model.table, model.config, sizes, options.layout)
        if sizes["vocab"] != sizes["true_vocab"]:
            notes.append(
                f"vocabulary padded from {sizes['true_vocab']:,} to {sizes['vocab']:,} rows of zeros"
            )
    elif options.layout != Layout():
        raise LayoutError("a Hugging Face directory has no parallel layout", hint="leave out --tp and --pp")
    if bound.sizes["vocab"] != bound.sizes["true_vocab"] and to.side == "hf":
        notes.append(
            f"{bound.sizes['vocab'] - bound.sizes['true_vocab']:,} rows of vocabulary padding left out"
        )
    if options.dtype is not None:
        model.config["params_dtype"] = options.dtype.name
    else:
        stated, usual = model.config.get("params_dtype"), bound.usual_dtype().name
        if stated not in (None, usual):
            notes.append(f"the config says {stated}, the tensors are {usual}: they are written as they are")
        model.config["params_dtype"] = usual
    writer = to.create(output, model, options, sizes)
    plan, payloads = _build_plan(bound, writer, sizes, options)
    plan.check()
    limits = Limits.within(max_memory, _JOB_NBYTES * len(plan.jobs))
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
        peak_memory_nbytes=limits.nbytes + _JOB_NBYTES * len(plan.jobs) + _base(),
        free_disk_nbytes=output.free_bytes(),
        files=len({payload.file.name for payload in payloads}),
        plan_seconds=time.perf_counter() - started,
        inert_keys=sorted(model.inert),
        ignored_keys=model.ignored,
        notes=notes,
    )
    if report.free_disk_nbytes < report.write_nbytes + (16 << 20):
        raise OutputError(
            f"{output.target.parent}: {report.write_nbytes / 1e9:,.1f} GB are needed, "
            f"{report.free_disk_nbytes / 1e9:,.1f} GB are free",
            hint="free space or choose another file system",
        )
    header = {
        "written_by": f"nemoconv {__version__}",
        "format": to.name,
        "architecture": model.table.architecture,
        "source_format": source.format,
        "dtype": options.dtype.name if options.dtype else None,
        "layout": {
            "tensor_parallel_size": options.layout.tensor_parallel_size,
            "pipeline_parallel_size": options.layout.pipeline_parallel_size,
        },
        "model_config": model.config,
        "padded_vocab_size": sizes["vocab"],
        "inert_config": model.inert,
        "ignored_config_keys": model.ignored,
    }
    return Conversion(source, bound, output, writer, plan, payloads, limits, report, header)


def _build_plan(
    bound: Bound, writer: Writer, sizes: dict[str, int], options: WriteOptions
) -> tuple[Plan, list[Payload]]:
    wide = {**sizes, "vocab": max(sizes["vocab"], bound.sizes["vocab"])}
    wanted = []
    for instance in bound.instances:
        source_dtype = bound.dtype(instance)
        target_dtype = options.dtype if options.dtype and source_dtype.is_floating_point else source_dtype
        asked = requests(instance, writer.side, sizes, options.layout, target_dtype)
        wanted.append((instance, source_dtype, target_dtype, asked))
    payloads = list(writer.reserve([request for *_, asked in wanted for _, request in asked]))
    remaining = iter(payloads)
    plan = Plan()
    for instance, source_dtype, target_dtype, asked in wanted:
        space = bound.space(instance.rule, wide)
        targets: list[Target] = []
        for part, request in asked:
            payload = next(remaining)
            strides = contiguous_strides(request.box, target_dtype.itemsize)
            extent = Extent(None, 0, request.start, request.box, strides)  # type: ignore[arg-type]
            for _, offset, start, shape, steps in space.place(part, sizes, extent):
                targets.append(Target(payload, offset, start, shape, steps))
        sources = bound.extents(instance, space)
        loose = instance.rule.pad is not None or not instance.in_hf
        plan.jobs.append(
            Job(
                instance.nemo,
                space.shape,
                source_dtype,
                target_dtype,
                sources,
                tuple(targets),
                loose,
                loose,
            )
        )
    return plan, payloads


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


def _base() -> int:
    """Memory of the process before buffers: what it holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def run(conversion: Conversion, *, verify: bool = False, progress: Progress | None = None) -> Report:
    """Carry out a planned conversion; the output appears whole or not at all."""
    from nemoconv.resharding.execute import execute

    started = time.perf_counter()
    plan, output, report = conversion.plan, conversion.output, conversion.report
    notes = list(report.notes)
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress("write", done, report.write_nbytes)

    with output:
        casts = execute(plan, conversion.limits, advance)
        for name, count in casts.overflows.items():
            notes.append(f"{name}: {count:,} finite values became infinite in the new dtype")
        for file in plan.sources():
            file.check_unchanged()
        conversion.writer.finish()
        output.write(manifest.NAME, manifest.build(conversion.header, conversion.payloads, output))
        if verify:
            _verify_stage(conversion, progress)
        if progress:
            progress("flush", report.write_nbytes, report.write_nbytes)
        output.commit()
    return replace(report, notes=notes, seconds=time.perf_counter() - started, verified=verify)


def _verify_stage(conversion: Conversion, progress: Progress | None) -> None:
    """Read the staged output back through its own reader and compare it with the source."""
    from nemoconv.converters.compare import compare

    written = converter(conversion.report.target_format).open(conversion.output.stage)
    with written:
        result = compare(conversion.source, written, progress)
    if not result.equal:
        raise OutputError(f"what was written differs from the source: {result.describe()}")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    dtype: str | None = None,
    max_shard_nbytes: int = 5 * 10**9,
    make_vocab_size_divisible_by: int | None = None,
    overwrite: bool = False,
    max_memory: int = DEFAULT_MAX_MEMORY,
    verify: bool = False,
    dry_run: bool = False,
    allow_ignored: Sequence[str] = (),
    config: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert the checkpoint at ``source`` into ``target`` in the format ``to`` ("hf" or "nemo2").

    ``max_memory`` and ``max_shard_nbytes`` are in bytes. ``config`` is a config.json (or a directory
    with one) to use instead of the source's own. ``progress`` is called with (phase, bytes done, bytes
    in all), from worker threads, one call at a time. With ``dry_run`` nothing is written.

    Raises the errors of :mod:`nemoconv.errors`; the target is then absent, or what it was before.
    """
    if dtype is not None and (dtype not in BY_NAME or "float" not in dtype):
        names = ", ".join(name for name in BY_NAME if "float" in name)
        raise UsageError(f"unknown dtype {dtype!r}", hint=f"one of {names}")
    if verify and dtype is not None:
        raise UsageError("verify compares bits, which a new dtype changes", hint="leave out one of them")
    options = WriteOptions(
        Layout(tensor_parallel_size, pipeline_parallel_size),
        max_shard_nbytes,
        BY_NAME[dtype] if dtype else None,
        make_vocab_size_divisible_by,
    )
    output = OutputDirectory(target, overwrite=overwrite)
    output.check((Path(source),))
    with open_checkpoint(source, config=config) as opened:
        conversion = prepare(
            opened,
            output,
            converter(to),
            options,
            allow_ignored=allow_ignored,
            max_memory=max_memory,
        )
        if dry_run:
            return conversion.report
        return run(conversion, verify=verify, progress=progress)


def plan(source: str | Path, target: str | Path, *, to: str, **options: Any) -> Report:
    """What :func:`convert` with the same arguments would do; reads headers, writes nothing."""
    return convert(source, target, to=to, **{**options, "dry_run": True})
