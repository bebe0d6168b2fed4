"""What the command line shows: progress on stderr, results on stdout, errors in one line."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import NemoconvError, OutputError, printable

if TYPE_CHECKING:
    from ..converters.run.convert import Progress
    from ..converters.run.plan import Report

#: the longest line of a result: lists of files and the like are longer than an error may be
_LONG = 1 << 20
#: what may be no printable character
_UNPRINTED = re.compile(r"[^\n\x20-\x7e]")
_VERBS = {"write": "writing", "flush": "flushing to disk", "verify": "verifying"}


def size(nbytes: int) -> str:
    """Bytes for people: powers of 1000, as disks and cp count."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


@contextmanager
def progress(show: bool) -> Iterator[Progress | None]:
    """A progress callback: a bar on a terminal, a line for every tenth otherwise, nothing if not ``show``."""
    if not show:
        yield None
    elif sys.stderr.isatty():
        with _bars() as callback:
            yield callback
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def update(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            for bar in bars.values():
                bar.close()
            bars[phase] = tqdm(
                total=total, desc=_VERBS[phase], unit="B", unit_scale=True, leave=False, file=sys.stderr
            )
        bars[phase].update(done - bars[phase].n)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()


def _lines() -> Progress:
    said: dict[str, int] = {}

    def update(phase: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > said.get(phase, 0):
            said[phase] = tenth
            complain(f"{_VERBS[phase]}: {tenth * 10} % of {size(total)}")

    return update


def say(lines: Iterable[str]) -> None:
    """Print results. What came out of a file is escaped: it reaches no terminal as a command.

    Raises OutputError where standard output takes no more.
    """
    _put("".join(printable(line, _LONG) + "\n" for line in lines))


def print_json(value: object) -> None:
    """A result as JSON on standard output. Raises OutputError where that takes no more."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    _put(_UNPRINTED.sub(_escaped, text) + "\n")


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _put(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence()
        raise OutputError(
            f"standard output cannot be written ({error.strerror or error})",
            hint="free space there, or send it elsewhere",
        ) from None


def silence(stream: TextIO | None = None) -> None:
    """Nothing more goes to standard output (or ``stream``): what is still held would fail again when the
    interpreter ends, which then ends with a code of its own (120)."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (stream or sys.stdout).fileno())
        os.close(nowhere)


def complain(text: str) -> None:
    """A line on standard error; where that is full, too, nobody can be told."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def fail(error: NemoconvError, *, as_json: bool) -> None:
    """The one line of an error on stderr, and with ``as_json`` an object on stdout."""
    kind = type(error).__name__
    if as_json:
        told = {"code": error.exit_code, "kind": kind, "message": error.message, "hint": error.hint}
        with suppress(OSError):  # the line on stderr says what it was
            _put(json.dumps({"error": told}) + "\n")
    complain(f"error: {error}")


def report_lines(report: Report, *, planned: bool, verbose: bool) -> list[str]:
    """A conversion's report in a few lines."""
    what = f"{report.source_format} -> {report.target_format}, {report.architecture}, {report.layout}"
    lines = [
        f"{'would write' if planned else 'wrote'} {report.target} ({what})",
        f"  {report.parameters:,} parameters, {report.tensors_in:,} tensors in, {report.tensors_out:,} out, "
        f"{report.moves:,} moves",
    ]
    if planned:
        lines += [
            f"  reads {size(report.read_nbytes)}, writes {size(report.write_nbytes)} "
            f"in {report.files} files; {size(report.free_disk_nbytes)} free on that disk",
            f"  peak memory about {size(report.peak_memory_nbytes)}; planned in {report.plan_seconds:.2f} s",
        ]
    else:
        speed = report.write_nbytes / report.seconds if report.seconds else 0
        checked = ", verified bit for bit" if report.verified else ""
        lines.append(
            f"  {size(report.write_nbytes)} in {report.seconds:.1f} s ({size(int(speed))}/s){checked}"
        )
    if planned or verbose:
        lines += report.rank_table
    lines += [f"  note: {note}" for note in report.notes]
    if report.ignored_keys:
        lines.append(f"  ignored on request: {', '.join(report.ignored_keys)}")
    if verbose and report.inert_keys:
        lines.append(f"  config keys carried along: {', '.join(report.inert_keys)}")
    return lines


def facts_lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested facts as indented lines; long lists of files are summed up."""
    lines = []
    for key, value in facts.items():
        if key == "files" and len(value) > 8:
            value = f"{len(value)} files, {size(sum(value.values()))}"
        elif key == "files":
            value = {name: size(nbytes) for name, nbytes in value.items()}
        if isinstance(value, Mapping) and value:
            lines.append(f"{indent}{key}:")
            lines += facts_lines(value, indent + "  ")
        else:
            lines.append(f"{indent}{key}: {_text(key, value)}")
    return lines


def _text(key: str, value: Any) -> str:
    if key == "bytes":
        return size(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != {} else "-"
