"""The command line: parse, call the library, print. No conversion logic lives here."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .converters import options
from .errors import NemoconvError
from .ui import flags, terminal
from .version import __version__

if TYPE_CHECKING:
    from .converters.run.plan import Report

# numpy would start a thread per core for linear algebra that is never done here
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class _Signal(BaseException):
    """A signal that ends the process after the output has been cleaned up."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _outcome(*, as_json: bool, debug: bool, ranks: bool = False) -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise _Signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        yield
    except _Signal as caught:
        left = "what is finished stays for --resume" if ranks else "nothing was left behind"
        terminal.complain(f"stopped by {signal.Signals(caught.number).name}; {left}")
        sys.exit(128 + caught.number)
    except NemoconvError as error:
        if debug:
            traceback.print_exc()
        terminal.fail(error, as_json=as_json)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        sys.exit(128 + signal.SIGPIPE)
    except MemoryError:
        terminal.complain("error: out of memory; lower --max-memory")
        sys.exit(6)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
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
        ranks = bool(arguments.get("ranks"))
        follows = ranks and os.environ.get("RANK", "0") != "0"  # of several ranks the first one speaks
        quiet, told = quiet or follows, as_json and not follows
        with _outcome(as_json=as_json, debug=debug, ranks=ranks):
            command(as_json=told, quiet=quiet, show=not (quiet or no_progress), **arguments)

    return wrapped


def _source(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say where a source is."""
    for name, settings in _HUB.items():
        command = click.option(name, cls=flags.Flag, group="Source", **settings)(command)
    return command


_HUB: dict[str, dict[str, Any]] = {
    "--offline": {"is_flag": True, "help": "Use the hub cache only."},
    "--cache-dir": {"metavar": "DIR", "help": "Hub cache to use."},
    "--token": {"metavar": "TOKEN", "help": "Hub token; default: HF_TOKEN or your login."},
    "--revision": {"metavar": "REV", "help": "Hub revision; also SRC@REV."},
}


def _picture(command: Callable[..., None]) -> Callable[..., None]:
    """--html and --svg: the plan as a picture."""

    @click.option("--html", metavar="FILE", help="Draw the plan: who holds what, which bytes move where.")
    @click.option("--svg", metavar="FILE", help="The same as an image.")
    @wraps(command)
    def wrapped(html: str | None, svg: str | None, **arguments: Any) -> None:
        for path, ending in ((html, ".html"), (svg, ".svg")):
            if path is not None and not path.lower().endswith(ending):
                raise click.BadParameter(f"{path!r} does not end in {ending}", param_hint=f"--{ending[1:]}")
        if html is not None and svg is not None:
            raise click.UsageError("--html and --svg exclude each other")
        command(picture=html or svg, **arguments)

    return wrapped


def _converting(**settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A command that converts SRC into OUT; see :class:`flags.Converting` for the rest of its options."""

    def made(command: Callable[..., None]) -> click.Command:
        wrapped = _source(_common(command))
        for name, required in (("out", False), ("src", True)):
            wrapped = click.argument(name, metavar=name.upper(), required=required)(wrapped)
        return main.command(cls=flags.Converting, **settings)(wrapped)

    return made


class _Main(click.Group):
    """The command line as a whole: help that cannot be printed is an error of the output, too."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        with suppress(AttributeError):  # a terminal of few letters is no reason to end; not all streams can
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            return super().main(*arguments, **settings)
        except OSError as error:
            terminal.silence()
            terminal.complain(f"error: standard output cannot be written ({error.strerror or error})")
            sys.exit(6)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nemoconv")
def main() -> None:
    """Convert checkpoints between NeMo, Megatron and Hugging Face, bit for bit.

    SRC is a path, a hub repository (org/name[@revision]) or hf://org/name; org/name/onnx/model.onnx is one
    ONNX model of it.

    \b
    Examples:
      nemoconv hf2nemo2 meta-llama/Llama-3.2-1B out/
      nemoconv nemo2hf out/ back/ --verify
      nemoconv hf2onnx HuggingFaceTB/SmolLM2-135M onnx/
      nemoconv inspect out/
      nemoconv verify out/ meta-llama/Llama-3.2-1B

    \b
    Exit codes: 0 done, 1 verify found a difference, 2 usage (a missing path too), 3 corrupt input,
    4 unsafe input, 5 unsupported, 6 output error, 7 hub not reachable, 70 internal error, 128+n signal n.
    """


def _locate(src: str, revision: str | None, token: str | None, cache_dir: str | None, offline: bool) -> str:
    from .converters.sources import HubOptions, locate

    return str(locate(src, HubOptions(revision, token, cache_dir, offline)))


def _show(report: Report, *, planned: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    if as_json:
        terminal.print_json(report.as_dict())
    elif not quiet:
        terminal.say(terminal.report_lines(report, planned=planned, verbose=verbose))


def _hub(arguments: dict[str, Any]) -> list[Any]:
    """Take what says how to reach the hub out of a command's arguments."""
    return [arguments.pop(key) for key in ("revision", "token", "cache_dir", "offline")]


def _run(
    work: Callable[..., Report],
    *places: Any,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    show: bool,
    **given: Any,
) -> None:
    """Call the library with what was said on the command line, and show its report."""
    said = options.said(given)
    planned = bool(said.get("dry_run"))
    with terminal.progress(show and not planned) as progress:
        report = work(*places, progress=progress, **said)
    reads = getattr(click.get_current_context().command, "reads", None)
    if reads is not None and report.source_format not in reads:
        report.notes.append(f"SRC is a checkpoint of format {report.source_format}, not {' or '.join(reads)}")
    _show(report, planned=planned, as_json=as_json, quiet=quiet, verbose=verbose)


def _convert(src: str, out: str | None, *, in_place: bool = False, **arguments: Any) -> None:
    from .converters.run.convert import convert

    if out is None and not in_place:
        raise click.UsageError("Missing argument 'OUT'.")
    path = _locate(src, *_hub(arguments))
    if in_place:
        arguments.pop("show")  # nothing takes long
        _add_graph(path, out, **arguments)
    else:
        _run(convert, path, out, **arguments)


def _add_graph(
    path: str,
    out: str | None,
    *,
    to: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """--in-place: the directory stays as it is and gets model.onnx."""
    from .converters.registry import target_format
    from .converters.run.onnx_in_place import add_graph

    if target_format(to).name != "onnx":
        raise click.UsageError("--in-place adds an ONNX graph: it goes with --to onnx")
    if out is not None and not (os.path.exists(out) and os.path.samefile(path, out)):
        raise click.UsageError("--in-place writes into SRC: leave out OUT")
    said = {name: value for name, value in options.said(given).items() if value != ()}
    taken = ("flavor", "overwrite", "dry_run", "allow_ignored", "ignore_manifest")
    others = sorted(said.keys() - {*taken, "max_memory"})
    if others:
        raise click.UsageError(f"--in-place leaves the weights alone: leave out {', '.join(others)}")
    report = add_graph(path, **{name: said[name] for name in taken if name in said})
    _show(report, planned="dry_run" in said, as_json=as_json, quiet=quiet, verbose=verbose)


@_converting(reads=["hf"], writes=["nemo2"])
def hf2nemo2(**arguments: Any) -> None:
    """Convert a Hugging Face directory into a NeMo 2 directory."""
    _convert(to="nemo2", **arguments)


@_converting(reads=["hf"], writes=["nemo"])
def hf2nemo(**arguments: Any) -> None:
    """Convert a Hugging Face directory into a NeMo 1 archive, OUT.nemo."""
    _convert(to="nemo", **arguments)


@_converting(reads=["nemo2", "nemo", "megatron"], writes=["hf"])
def nemo2hf(**arguments: Any) -> None:
    """Convert a NeMo checkpoint into a Hugging Face directory."""
    _convert(to="hf", **arguments)


@_converting(reads=["hf"], writes=["onnx"])
def hf2onnx(**arguments: Any) -> None:
    """Write a Hugging Face directory with an ONNX graph beside its weights."""
    _convert(to="onnx", **arguments)


@_converting(reads=["nemo2", "nemo"], writes=["onnx"])
def nemo2onnx(**arguments: Any) -> None:
    """Convert a NeMo checkpoint into ONNX."""
    _convert(to="onnx", **arguments)


@_converting()
def convert(**arguments: Any) -> None:
    """Convert any checkpoint into any format."""
    _convert(**arguments)


@_converting(
    without=[
        options.VERIFY,
        options.RANKS,
        options.RESUME,
        options.OVERWRITE,
        options.DRY_RUN,
        options.DEVICE,
    ]
)
@_picture
def plan(**arguments: Any) -> None:
    """Show what convert would do: tensors, moves, bytes, memory, disk. Writes nothing but the picture."""
    _convert(**{**arguments, "dry_run": True})


@main.command(cls=flags.Command)
@click.argument("src", metavar="[SRC]", default=".")
@click.argument("out", metavar="[OUT]", required=False)
@flags.flagged(*options.LAYOUT, group="Layout")
@click.option("--layers", metavar="A-B", help="Only these layers, as a model of their own: 0-7, or 0-3,8.")
@click.option("--stage", type=click.IntRange(0), help="Only the layers of this pipeline stage of --pp.")
@click.option("--drop-optimizer", is_flag=True, help="Leave out optimizer state.")
@flags.flagged(options.VOCABULARY, options.CONFIG)
@flags.flagged(*options.RUN, group="Run")
@_picture
@_source
@_common
def reshard(src: str, out: str | None, **arguments: Any) -> None:
    """Write a checkpoint again, cut for another parallel layout.

    SRC is the current directory, and OUT a sibling of it named after the layout, unless given. Sizes that
    are not given are as in SRC. Format, config, tokenizer and optimizer state stay.
    """
    from .converters.run.reshard import reshard as work

    path = _locate(src, *_hub(arguments))
    if out is None and not os.path.exists(src):
        raise click.UsageError("give OUT as well when SRC is not a local path")
    _run(work, path, out, **arguments)


@main.command()
@click.argument("path", metavar="PATH")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--grep", metavar="RE", help="List the tensors whose name this expression is found in.")
@flags.flagged(options.CONFIG)
@_source
@_common
def inspect(
    path: str,
    tensors: bool,
    grep: str | None,
    as_json: bool,
    quiet: bool,
    config: str | None,
    **arguments: Any,
) -> None:
    """Tell what is in a checkpoint, from its headers alone."""
    from .converters.look.inspect import describe, tensor_rows
    from .converters.registry import open_checkpoint

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
    if quiet:
        return
    lines = terminal.facts_lines(facts)
    for row in rows or ():
        whose = f" (rank {row['rank']})" if "rank" in row else ""
        lines.append(f"{row['dtype']:>9}  {row['shape']!s:<24} {row['name']}{whose}")
    terminal.say(lines)


@main.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B", required=False)
@flags.flagged(options.CONFIG)
@_source
@_common
def verify(
    a: str, b: str | None, as_json: bool, quiet: bool, show: bool, config: str | None, **arguments: Any
) -> None:
    """Check A, or compare it with B bit for bit across formats and layouts.

    A alone: structure, completeness and checksums. With B: every tensor under its canonical name.
    Exits with 1 when they differ.
    """
    from .converters.look.verify import verify as run

    hub = [arguments[key] for key in ("revision", "token", "cache_dir", "offline")]
    with terminal.progress(show) as progress:
        other = _locate(b, *hub) if b is not None else None
        result = run(_locate(a, *hub), other, config=config, progress=progress)
    if as_json:
        terminal.print_json({"equal": result.equal, "result": result.describe(), **result.as_dict()})
    elif not quiet:
        terminal.say([result.describe()])
    sys.exit(0 if result.equal else 1)


@main.command()
@_common
def supported(as_json: bool, quiet: bool, **_: Any) -> None:
    """List formats and architectures, where they come from and how each is verified."""
    from .converters.look.support import matrix

    facts = matrix()
    if as_json:
        terminal.print_json(facts)
        return
    if quiet:
        return
    lines = ["formats:"]
    for row in facts["formats"]:
        lines.append(f"  {row['name']:<8} {row['directions']:<12} {row['title']} [{row['origin']}]")
    lines.append("architectures:")
    for row in facts["architectures"]:
        lines.append(f"  {row['name']}: {row['hf_class']} [{row['origin']}]")
        lines.append(f"      {', '.join(row['verified'])}")
    terminal.say(lines)


@main.command()
@click.argument("folder", required=False, metavar="[FOLDER]")
@_common
def demo(folder: str | None, as_json: bool, quiet: bool, **_: Any) -> None:
    """Run the main job on a tiny built-in Llama: HF -> NeMo 2 (tp2) -> HF, verified.

    Everything is written below FOLDER (default: a temporary one that is removed).
    """
    from .ui.demo import run

    lines = []
    for line in run(folder):
        lines.append(line)
        if not (quiet or as_json):
            terminal.say([line])
    if as_json:
        terminal.print_json({"lines": lines})
