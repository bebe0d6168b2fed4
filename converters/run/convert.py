"""Convert a checkpoint: plan on headers, execute, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CorruptCheckpoint, OutputError, UnsupportedError, UsageError, some
from ...resharding.devices import check_device
from ...stores.output import OutputDirectory
from ...tensors.dtypes import BY_NAME
from ...tensors.layout import Layout
from .. import manifest
from ..base import Checkpoint, WriteOptions
from ..mtp_layers import check_copies
from ..registry import converter, open_checkpoint
from .plan import DEFAULT_MAX_MEMORY, Conversion, Report, disk_shortage, prepare

if TYPE_CHECKING:
    from ...resharding.plan import Job, Plan
    from ...resharding.worker import CastReport

#: (phase, bytes done, bytes in all); phases are "write", "verify", "flush"
Progress = Callable[[str, int, int], None]

#: how experts may be keyed
EXPERTS = ("stacked", "singleton")
#: what weights may be cast to; the eight-bit types need scales, which a cast does not make
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(
    conversion: Conversion,
    *,
    verify: bool = False,
    exact: bool = False,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Carry out a planned conversion on a device; the output appears whole or not at all.

    Where RANK and WORLD_SIZE say that this is one of several processes, they share the work; ``resume``
    continues what they did not finish (see :mod:`nemoconv.converters.run.multi_process`).
    """
    from ...resharding.devices import executor
    from .multi_process import staged

    started = time.perf_counter()
    plan, output, report = conversion.plan, conversion.output, conversion.report
    notes = list(report.notes)
    check_copies(report.source, conversion.repeated)
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress("write", done, report.write_nbytes)

    with staged(conversion, resume=resume) as part:
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


def _prepare(
    source: Checkpoint,
    output: OutputDirectory,
    to: str,
    options: WriteOptions,
    allow_ignored: Sequence[str],
    max_memory: int,
) -> Conversion:
    target = converter(to)
    if target.plain:
        from .safetensors import prepare_plain

        return prepare_plain(source, output, options, max_memory=max_memory)
    return prepare(source, output, target, options, allow_ignored=allow_ignored, max_memory=max_memory)


def _verify_stage(conversion: Conversion, progress: Progress | None) -> None:
    """Read the staged output back through its own reader and compare it with the source."""
    from .compare import compare, compare_companions

    written = converter(conversion.report.target_format).open(
        conversion.output.staged, config=conversion.config
    )
    try:
        with written:
            result = compare(conversion.source, written, progress, conversion.report.ignored_keys)
            carried = {kind: state for kind, (state, _) in conversion.writer.companions().items()}
            if carried and result.equal:
                compare_companions(conversion.source.model(), carried, written.companions(), result)
    except CorruptCheckpoint as error:
        if f"/{conversion.output.stage.name}/" not in error.message:
            raise
        raise OutputError(f"what was written is not what is read back: {error.message}") from None
    if not result.equal:
        raise OutputError(f"what was written differs from the source: {result.describe()}")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    dtype: str | None = None,
    max_shard_nbytes: int = 5 * 10**9,
    make_vocab_size_divisible_by: int | None = None,
    overwrite: bool = False,
    max_memory: int = DEFAULT_MAX_MEMORY,
    verify: bool = False,
    dry_run: bool = False,
    allow_ignored: Sequence[str] = (),
    config: str | Path | None = None,
    picture: str | Path | None = None,
    flavor: str | None = None,
    pack: bool = False,
    dequantize: bool = False,
    normalize_rows: bool = False,
    exact: bool = False,
    head: str | None = None,
    rank_files: bool = False,
    experts: str | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Convert the checkpoint at ``source`` into ``target`` in the format ``to`` ("hf" or "nemo2").

    ``max_memory`` and ``max_shard_nbytes`` are in bytes. ``config`` is a config.json (or a directory
    with one) to use instead of the source's own. ``picture`` is an .svg or .html file to draw the plan in.
    ``dequantize`` accepts weights that the source holds only approximately; the report then says LOSSY.
    ``normalize_rows`` divides the rows of an output layer by their lengths, where the model's own code does
    so whenever it runs (Baichuan 2) and the target's does not; the lengths are lost: the report says LOSSY.
    ``device`` ("cpu" or "cuda") is where values are cast and short runs gathered; the result is the same.
    ``resume`` continues a run of several ranks (torchrun) that did not finish.
    ``exact`` refuses a ``dtype`` that would round a value. ``flavor`` ("std" or "genai") and ``pack`` are
    for ``to="onnx"``. ``head`` ("transducer" or "ctc") is the one of a hybrid speech model to convert to
    Hugging Face. ``rank_files`` is for ``to="nemo"``: a state dict for each rank instead of a distributed
    checkpoint. ``experts`` ("stacked" or "singleton") is for ``to="nemo2"``: one key for all experts of a
    layer, as every kind of experts of megatron-core has it, or keys that nothing shares, as its
    ``singleton_local_shards`` writes them. ``progress`` is called with (phase, bytes done, bytes
    in all), from worker threads, one call at a time. With ``dry_run`` nothing is written.

    Raises the errors of :mod:`nemoconv.errors`; the target is then absent, or what it was before.
    """
    dtype = _SHORT.get(dtype, dtype) if dtype else dtype
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", hint=f"one of {', '.join(_DTYPES)}")
    if verify and dtype is not None:
        raise UsageError("verify compares bits, which a new dtype changes", hint="leave out one of them")
    if experts not in (None, *EXPERTS):
        raise UsageError(
            f"unknown experts {experts!r}",
            hint="stacked, as megatron-core's grouped and sequential experts both lie on disk, or singleton",
        )
    check_device(device)
    options = WriteOptions(
        Layout(tensor_parallel_size, pipeline_parallel_size, expert_parallel_size),
        max_shard_nbytes,
        BY_NAME[dtype] if dtype else None,
        make_vocab_size_divisible_by,
        flavor,
        pack,
        rank_files,
        experts,
    )
    converter(to).check_options(options)
    output = converter(to).output(target, overwrite=overwrite)
    output.check((Path(source),))
    with open_checkpoint(source, config=config) as opened:
        if dequantize:
            opened.dequantize()
        if normalize_rows:
            opened.normalize_rows()
        if head is not None:
            opened.choose_head(head)
        seen = opened.view_for(to)
        conversion = _prepare(seen, output, to, options, allow_ignored, max_memory)
        if picture is not None:
            from .picture import write_picture

            write_picture(picture, conversion)
        if exact:
            _check_exact(conversion.plan)
        shortage = disk_shortage(conversion.report)
        if dry_run:
            report = conversion.report
            return (
                replace(report, notes=[*report.notes, f"not enough disk: {shortage}"]) if shortage else report
            )
        if shortage and not resume:  # what is resumed has its place already
            raise OutputError(shortage, hint="free space or choose another file system")
        return run(conversion, verify=verify, exact=exact, device=device, resume=resume, progress=progress)


def plan(source: str | Path, target: str | Path, *, to: str, **options: Any) -> Report:
    """What :func:`convert` with the same arguments would do; reads headers, writes nothing."""
    return convert(source, target, to=to, **{**options, "dry_run": True})
