"""The command line: parse, call the library, print. No conversion logic lives here."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

import click

from nemoconv import __version__, terminal
from nemoconv.errors import NemoconvError

# numpy would start a thread per core for linear algebra that is never done here
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class ByteSize(click.ParamType[int]):
    """A number of bytes: 512MiB (powers of 1024), 5GB (powers of 1000), 1000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([\d.]+)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        try:
            number = float(match[1]) if match else -1
        except ValueError:
            number = -1
        if match is None or number <= 0:
            self.fail(f"{value!r} is not a size such as 512MiB or 5GB", param, ctx)
        return int(number * (1024 if match[3] else 1000) ** _UNITS[match[2]])


class _Signal(BaseException):
    """A signal that ends the process after the output has been cleaned up."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _outcome(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise _Signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        yield
    except _Signal as caught:
        print(f"stopped by {signal.Signals(caught.number).name}; nothing was left behind", file=sys.stderr)
        sys.exit(128 + caught.number)
    except NemoconvError as error:
        if debug:
            raise
        terminal.fail(error, as_json=as_json)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        sys.exit(128 + signal.SIGPIPE)
    except MemoryError:
        print("error: out of memory; lower --max-memory", file=sys.stderr)
        sys.exit(6)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        bug = NemoconvError(
            f"internal error: {type(error).__name__}: {error}", hint="please report it with --debug's output"
        )
        terminal.fail(bug, as_json=as_json)
        sys.exit(bug.exit_code)


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """--json, -q, -v, --no-progress, --debug on a command, and its errors in one line."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more.")
    @click.option("--no-progress", is_flag=True, help="Show no progress.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(command)
    def wrapped(as_json: bool, debug: bool, quiet: bool, no_progress: bool, **arguments: Any) -> None:
        with _outcome(as_json=as_json, debug=debug):
            command(as_json=as_json, quiet=quiet, show=not (quiet or no_progress), **arguments)

    return wrapped


def _source(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say where a source is."""
    for option in (
        click.option("--offline", is_flag=True, help="Use the hub cache only."),
        click.option("--cache-dir", metavar="DIR", help="Hub cache to use."),
        click.option("--token", metavar="TOKEN", help="Hub token; default: HF_TOKEN or your login."),
        click.option("--revision", metavar="REV", help="Hub revision; also SRC@REV."),
        click.option("--config", metavar="PATH", help="config.json to use instead of the source's own."),
    ):
        command = option(command)
    return command


def _conversion(command: Callable[..., None]) -> Callable[..., None]:
    """Arguments and options of every command that converts."""
    for option in (
        click.option(
            "--allow-ignored", multiple=True, metavar="KEY", help="Accept an unknown config key; recorded."
        ),
        click.option("--verify", is_flag=True, help="Read the output back and compare every bit."),
        click.option(
            "--max-memory", type=ByteSize(), default="512MiB", show_default=True, help="Bound on memory."
        ),
        click.option("--overwrite", is_flag=True, help="Replace OUT, once the new one is whole."),
        click.option("--dry-run", is_flag=True, help="Plan and check, write nothing."),
        click.option(
            "--max-shard-size", "max_shard_nbytes", type=ByteSize(), default="5GB", show_default=True,
            help="Largest safetensors file.",
        ),
        click.option(
            "--dtype", metavar="DTYPE", help="float32, bfloat16, float16 or float64; default: as it is.",
        ),
        click.option(
            "--make-vocab-size-divisible-by", type=click.IntRange(1), metavar="N",
            help="Pad the vocabulary to a multiple of N times --tp.",
        ),
        click.option(
            "--ep", "expert_parallel_size", type=click.IntRange(1), default=1, help="Expert parallel size.",
        ),
        click.option(
            "--pp", "pipeline_parallel_size", type=click.IntRange(1), default=1,
            help="Pipeline parallel size.",
        ),
        click.option(
            "--tp", "tensor_parallel_size", type=click.IntRange(1), default=1, help="Tensor parallel size."
        ),
        click.argument("out", metavar="OUT"),
        click.argument("src", metavar="SRC"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nemoconv")
def main() -> None:
    """Convert checkpoints between NeMo, Megatron and Hugging Face, bit for bit.

    SRC is a path, a hub repository (org/name[@revision]) or hf://org/name.

    \b
    Examples:
      nemoconv hf2nemo2 meta-llama/Llama-3.2-1B out/
      nemoconv nemo2hf out/ back/ --verify
      nemoconv inspect out/
      nemoconv verify out/ meta-llama/Llama-3.2-1B

    \b
    Exit codes: 0 done, 1 verify found a difference, 2 usage, 3 corrupt input, 4 unsafe input,
    5 unsupported, 6 output error, 70 internal error, 128+n signal n.
    """


def _locate(src: str, revision: str | None, token: str | None, cache_dir: str | None, offline: bool) -> str:
    from nemoconv.converters.sources import HubOptions, locate

    return str(locate(src, HubOptions(revision, token, cache_dir, offline)))


def _convert(
    src: str,
    out: str,
    to: str,
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    show: bool,
    revision: str | None,
    token: str | None,
    cache_dir: str | None,
    offline: bool,
    **options: Any,
) -> None:
    from nemoconv.converters.conversion import convert

    path = _locate(src, revision, token, cache_dir, offline)
    with terminal.progress(show and not options["dry_run"]) as progress:
        report = convert(path, out, to=to, progress=progress, **options)
    if as_json:
        terminal.print_json(report.as_dict())
    elif not quiet:
        print("\n".join(terminal.report_lines(report, planned=options["dry_run"], verbose=verbose)))


@main.command()
@_conversion
@_source
@_common
def hf2nemo2(**arguments: Any) -> None:
    """Convert a Hugging Face directory into a NeMo 2 directory."""
    _convert(to="nemo2", **arguments)


@main.command()
@_conversion
@_source
@_common
def nemo2hf(**arguments: Any) -> None:
    """Convert a NeMo checkpoint into a Hugging Face directory."""
    _convert(to="hf", **arguments)


@main.command()
@_conversion
@click.option("--to", required=True, metavar="FORMAT", help="hf or nemo2; the source's format is detected.")
@_source
@_common
def convert(**arguments: Any) -> None:
    """Convert any checkpoint into any format."""
    _convert(**arguments)


@main.command()
@_conversion
@click.option("--to", required=True, metavar="FORMAT", help="hf or nemo2.")
@_source
@_common
def plan(**arguments: Any) -> None:
    """Show what convert would do: tensors, moves, bytes, memory, disk. Writes nothing."""
    _convert(**{**arguments, "dry_run": True})


@main.command()
@click.argument("path", metavar="PATH")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--grep", metavar="RE", help="List the tensors whose name this expression is found in.")
@_source
@_common
def inspect(
    path: str, tensors: bool, grep: str | None, as_json: bool, config: str | None, **arguments: Any
) -> None:
    """Tell what is in a checkpoint, from its headers alone."""
    from nemoconv.converters.inspection import describe, tensor_rows
    from nemoconv.converters.registry import open_checkpoint

    where = _locate(path, *(arguments[key] for key in ("revision", "token", "cache_dir", "offline")))
    if grep is not None:
        try:
            re.compile(grep)
        except re.error as error:
            raise click.BadParameter(f"{grep!r}: {error}", param_hint="--grep") from None
    with open_checkpoint(where, config=config) as checkpoint:
        facts = describe(checkpoint)
        rows = tensor_rows(checkpoint, grep) if tensors or grep is not None else None
    if as_json:
        terminal.print_json({**facts, **({"tensor_list": rows} if rows is not None else {})})
        return
    print("\n".join(terminal.facts_lines(facts)))
    for row in rows or ():
        print(f"{row['dtype']:>9}  {row['shape']!s:<24} {row['name']}")


@main.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B", required=False)
@_source
@_common
def verify(
    a: str, b: str | None, as_json: bool, quiet: bool, show: bool, config: str | None, **arguments: Any
) -> None:
    """Check A, or compare it with B bit for bit across formats and layouts.

    A alone: structure, completeness and checksums. With B: every tensor under its canonical name.
    Exits with 1 when they differ.
    """
    from nemoconv.converters.verification import verify as run

    hub = [arguments[key] for key in ("revision", "token", "cache_dir", "offline")]
    with terminal.progress(show) as progress:
        other = _locate(b, *hub) if b is not None else None
        result = run(_locate(a, *hub), other, config=config, progress=progress)
    if as_json:
        terminal.print_json({"equal": result.equal, "result": result.describe(), **result.as_dict()})
    elif not quiet:
        print(result.describe())
    sys.exit(0 if result.equal else 1)


@main.command()
@_common
def supported(as_json: bool, **_: Any) -> None:
    """List formats and architectures, where they come from and how each is verified."""
    from nemoconv.converters.support import matrix

    facts = matrix()
    if as_json:
        terminal.print_json(facts)
        return
    print("formats:")
    for row in facts["formats"]:
        print(f"  {row['name']:<8} {row['directions']:<12} {row['title']} [{row['origin']}]")
    print("architectures:")
    for row in facts["architectures"]:
        print(f"  {row['name']}: {row['hf_class']} [{row['origin']}]")
        print(f"      {', '.join(row['verified'])}")


@main.command()
@click.argument("folder", required=False, metavar="[FOLDER]")
@_common
def demo(folder: str | None, quiet: bool, **_: Any) -> None:
    """Run the main job on a tiny built-in Llama: HF -> NeMo 2 (tp2) -> HF, verified.

    Everything is written below FOLDER (default: a temporary one that is removed).
    """
    from nemoconv.demo import run

    for line in run(folder):
        if not quiet:
            print(line, flush=True)
