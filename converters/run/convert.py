"""Convert a checkpoint: plan on headers, execute, commit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ...errors import CorruptCheckpoint, OutputError, UnsupportedError, UsageError, some
from ...resharding.devices import check_device
from ...stores.output import OutputDirectory
from ...tensors.dtypes import BY_NAME
from ...tensors.layout import Layout
from .. import manifest, source_manifest
from ..abilities import HasOptimizer, seen_by
from ..hf.format import HFOptions
from ..layouts import asked_sizes, settle_layout
from ..nemo1.format import NeMo1Options
from ..nemo2.format import NeMo2Options
from ..onnx.format import OnnxOptions
from ..options import COMMON, Common, Settings, check_dtype, said
from ..registry import check_known, find_format, recognize, split_options, target_format
from .plan import Conversion, Report, Wish, disk_shortage, prepare
from .safetensors import prepare_plain

if TYPE_CHECKING:
    from ...resharding.plan import Job, Plan
    from ...resharding.worker import CastReport

#: (phase, bytes done, bytes in all); phases are "write", "verify", "flush"
Progress = Callable[[str, int, int], None]


def carry_out(
    conversion: Conversion,
    settings: Settings,
    *,
    verify: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """The end of every conversion and change of layout: draw it, see that the disk has room, and run it
    unless it is only planned."""
    if settings.picture is not None:
        from .picture import write_picture

        write_picture(settings.picture, conversion)
    report, shortage = conversion.report, disk_shortage(conversion.report)
    if dry_run:
        output = conversion.output
        notes = [f"not enough disk: {shortage}"] if shortage else []
        if os.path.lexists(output.target) and not output.overwrite:
            notes.append(f"{output.target} exists already: pass --overwrite to replace it")
        return replace(report, notes=[*report.notes, *notes])
    if shortage and not settings.resume:  # what is resumed has its place already
        raise OutputError(shortage, hint="free space or choose another file system")
    return run(
        conversion,
        verify=verify,
        exact=settings.exact,
        device=settings.device,
        resume=settings.resume,
        ranks=settings.ranks,
        progress=progress,
    )


def place(
    make: Callable[..., OutputDirectory],
    target: str | Path,
    source: Path,
    *,
    overwrite: bool,
    dry_run: bool,
) -> OutputDirectory:
    """Where the output is staged. Raises OutputError where it cannot be; for a dry run one may be there."""
    make(target, overwrite=overwrite or dry_run).check((source,))
    return make(target, overwrite=overwrite)


def run(
    conversion: Conversion,
    *,
    verify: bool = False,
    exact: bool = False,
    device: str = "cpu",
    resume: bool = False,
    ranks: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Carry out a planned conversion on a device; the output appears whole or not at all.

    With ``ranks`` this is one of several processes, of which RANK and WORLD_SIZE tell, and they share work;
    ``resume`` continues what they did not finish (see :mod:`nemoconv.converters.run.multi_process`).
    """
    from ...resharding.devices import executor
    from .multi_process import staged

    started = time.perf_counter()
    plan, output, report = conversion.plan, conversion.output, conversion.report
    notes = list(report.notes)
    for check in conversion.before:
        check()
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress("write", done, report.write_nbytes)

    with staged(conversion, resume=resume, ranks=ranks) as part:
        casts = part.execute(executor(device), advance)
        for name, count in casts.overflows.items():
            notes.append(f"{name}: {count:,} finite values became infinite in the new dtype")
        notes += _rounding_notes(plan, casts)
        if exact and (casts.rounded or casts.overflows):
            raise UnsupportedError(
                f"{report.source}: {sum(casts.rounded.values()):,} values are not exact in the new dtype, "
                f"in {some(sorted({**casts.rounded, **casts.overflows}), 3)}",
                hint="leave out --exact to have them rounded",
            )
        for file in plan.sources():
            file.check_unchanged()
        if part.follows:
            part.committed()
            return replace(report, notes=notes, seconds=time.perf_counter() - started)
        part.settle()
        conversion.writer.finish()
        output.write(manifest.NAME, manifest.build(conversion.header, conversion.payloads, output))
        output.complete()
        if verify:
            _verify_stage(conversion, progress)
        if progress:
            progress("flush", report.write_nbytes, report.write_nbytes)
        output.commit()
        part.committed()
    return replace(report, notes=notes, seconds=time.perf_counter() - started, verified=verify)


def _rounding_notes(plan: Plan, casts: CastReport) -> list[str]:
    if not any(_is_counted(job) for job in plan.jobs):
        return []
    if casts.rounded:
        return [f"{sum(casts.rounded.values()):,} float32 values were rounded to bfloat16"]
    return ["no float32 value was rounded: all of them are bfloat16 numbers"]


def _is_counted(job: Job) -> bool:
    return (job.source_dtype.name, job.target_dtype.name) == ("float32", "bfloat16")


def _check_exact(plan: Plan) -> None:
    """Raise UsageError for a change of dtype of which the run cannot tell whether it rounds."""
    widening = {("bfloat16", "float32"), ("float16", "float32")}
    for job in plan.jobs:
        pair = job.source_dtype.name, job.target_dtype.name
        exact = pair[0] == pair[1] or pair in widening or pair[1] == "float64"
        if job.source_dtype.is_floating_point and not exact and not _is_counted(job):
            raise UsageError(
                f"exact cannot be checked for {job.name}: {pair[0]} to {pair[1]}",
                hint="it is checked for float32 to bfloat16",
            )


def _verify_stage(conversion: Conversion, progress: Progress | None) -> None:
    """Read the staged output back through its own reader and compare it with the source."""
    from .compare import compare, compare_companions

    config = {"config": conversion.config} if conversion.config is not None else {}
    written = find_format(conversion.report.target_format).open(conversion.output.staged, config)
    try:
        with written:
            result = compare(conversion.source, written, progress, conversion.report.ignored_keys)
            companions = {kind: state for kind, (state, _) in conversion.writer.companions().items()}
            if companions and result.equal:
                states = written.companions() if isinstance(written, HasOptimizer) else {}
                compare_companions(conversion.source.model(), companions, states, result)
    except CorruptCheckpoint as error:
        if f"/{conversion.output.stage.name}/" not in error.message:
            raise
        raise OutputError(f"what was written is not what is read back: {error.message}") from None
    if not result.equal:
        raise OutputError(f"what was written differs from the source: {result.describe()}")


class Keywords(Common, HFOptions, NeMo1Options, NeMo2Options, OnnxOptions, total=False):
    """Keywords of :func:`convert` beside those that its signature shows: how it is carried out, and what the
    source's and the target's format may be told. A third party's format adds its own at run time."""

    exact: bool


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    layout: Layout | str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    **options: Unpack[Keywords],
) -> Report:
    """Convert the checkpoint at ``source`` into ``target`` in the format ``to``, a name of
    ``nemoconv supported`` in any case, or an alias such as "huggingface".

    ``layout`` is a :class:`Layout` or a YAML file (docs/layout.md); ``tensor_parallel_size`` and the like win
    over it. Layers that do not come out even on the stages are dealt as Megatron deals them, see
    :meth:`Layout.dealt`. ``dtype`` casts the weights; ``exact`` refuses to round a value. ``verify`` reads
    the output back and compares every bit. With ``dry_run`` nothing is written. ``progress`` is called
    with (phase, bytes done, bytes in all), from worker threads, one call at a time.

    Other ``options`` are those of :mod:`nemoconv.converters.options` (``max_memory``, ``device``,
    ``allow_ignored``, ``ignore_manifest``, ``picture``, ``ranks``, ``resume``) and of the two formats;
    ``nemoconv convert --help`` lists all of them. Sizes are in bytes, or texts such as "2GiB".

    Raises the errors of :mod:`nemoconv.errors`, UsageError for an option that means nothing here; the target
    is then absent, or what it was before.
    """
    given = said(options)
    check_known(given)
    cast = check_dtype(dtype)
    if verify and cast is not None:
        raise UsageError("verify compares bits, which a new dtype changes", hint="leave out one of them")
    settings = Settings.of(given)
    if settings.exact and cast is None:
        raise UsageError("exact is of no use without a dtype", hint="leave it out, or say what to cast to")
    check_device(settings.device)
    written = target_format(to)
    wanted = settle_layout(Layout(), asked_sizes(given), layout)
    output = place(written.output, target, Path(source), overwrite=overwrite, dry_run=dry_run)
    found = recognize(Path(source))
    own = {name: value for name, value in given.items() if name not in {option.name for option in COMMON}}
    reading, writing = split_options(own, found, written)
    ignored = settings.ignore_manifest
    with source_manifest.opened(found, Path(source), reading, ignore=ignored) as (opened, told):
        wish = Wish(
            wanted,
            BY_NAME[cast] if cast else None,
            writing,
            settings.allow_ignored,
            settings.max_memory,
            workers=settings.workers,
        )
        seen = seen_by(opened, written.name)
        conversion = (
            prepare_plain(seen, output, wish) if written.plain else prepare(seen, output, written, wish)
        )
        told.compare(conversion)
        if settings.exact:
            _check_exact(conversion.plan)
        return carry_out(conversion, settings, verify=verify, dry_run=dry_run, progress=progress)


def plan(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    layout: Layout | str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    **options: Unpack[Keywords],
) -> Report:
    """What :func:`convert` with the same arguments would do; reads headers, writes nothing."""
    return convert(
        source, target, to=to, layout=layout, dtype=dtype, overwrite=overwrite, dry_run=True, **options
    )
