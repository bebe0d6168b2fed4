"""Convert a checkpoint: plan on headers, execute, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoconv.converters import manifest
from nemoconv.converters.base import WriteOptions
from nemoconv.converters.planning import DEFAULT_MAX_MEMORY, Conversion, Report, disk_shortage, prepare
from nemoconv.converters.registry import converter, open_checkpoint
from nemoconv.errors import OutputError, UsageError
from nemoconv.formats.dtypes import BY_NAME
from nemoconv.formats.output import OutputDirectory
from nemoconv.resharding.layout import Layout

#: (phase, bytes done, bytes in all); phases are "write", "verify", "flush"
Progress = Callable[[str, int, int], None]

#: what weights may be cast to; the eight-bit types need scales, which a cast does not make
_DTYPES = ("float64", "float32", "bfloat16", "float16")


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
    progress: Progress | None = None,
) -> Report:
    """Convert the checkpoint at ``source`` into ``target`` in the format ``to`` ("hf" or "nemo2").

    ``max_memory`` and ``max_shard_nbytes`` are in bytes. ``config`` is a config.json (or a directory
    with one) to use instead of the source's own. ``progress`` is called with (phase, bytes done, bytes
    in all), from worker threads, one call at a time. With ``dry_run`` nothing is written.

    Raises the errors of :mod:`nemoconv.errors`; the target is then absent, or what it was before.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", hint=f"one of {', '.join(_DTYPES)}")
    if verify and dtype is not None:
        raise UsageError("verify compares bits, which a new dtype changes", hint="leave out one of them")
    options = WriteOptions(
        Layout(tensor_parallel_size, pipeline_parallel_size, expert_parallel_size),
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
        shortage = disk_shortage(conversion.report)
        if dry_run:
            report = conversion.report
            return (
                replace(report, notes=[*report.notes, f"not enough disk: {shortage}"]) if shortage else report
            )
        if shortage:
            raise OutputError(shortage, hint="free space or choose another file system")
        return run(conversion, verify=verify, progress=progress)


def plan(source: str | Path, target: str | Path, *, to: str, **options: Any) -> Report:
    """What :func:`convert` with the same arguments would do; reads headers, writes nothing."""
    return convert(source, target, to=to, **{**options, "dry_run": True})
