"""The command line: parse, call the library, print. No conversion logic lives here."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from .errors import NemoconvError
from .ui import terminal
from .version import __version__

if TYPE_CHECKING:
    from .converters.run.plan import Report

# numpy would start a thread per core for linear algebra that is never done here
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:  # click before 8.4 knows no type parameter
    _IntType = click.ParamType


class ByteSize(_IntType):
    """A number of bytes: 512MiB (powers of 1024), 5GB (powers of 1000), 1000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([\d.]+)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        try:
            number = float(match[1]) if match else 0.0
        except ValueError:
            number = 0.0
        nbytes = number * (1024 if match[3] else 1000) ** _UNITS[match[2]] if match else 0.0
        if not 1 <= nbytes < 2**63:
            self.fail(f"{value!r} is not a size such as 512MiB or 5GB", param, ctx)
        return int(nbytes)


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
        several = "WORLD_SIZE" in os.environ
        left = "what is finished stays for --resume" if several else "nothing was left behind"
        print(f"stopped by {signal.Signals(caught.number).name}; {left}", file=sys.stderr)
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
        follows = os.environ.get("RANK", "0") != "0"  # of several ranks the first one speaks
        quiet, told = quiet or follows, as_json and not follows
        with _outcome(as_json=as_json, debug=debug):
            command(as_json=told, quiet=quiet, show=not (quiet or no_progress), **arguments)

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


def _output(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that writes a checkpoint."""
    for option in (
        click.option(
            "--allow-ignored", multiple=True, metavar="KEY", help="Accept an unknown config key; recorded."
        ),
        click.option("--verify", is_flag=True, help="Read the output back and compare every bit."),
        click.option(
            "--max-memory", type=ByteSize(), default="512MiB", show_default=True, help="Bound on memory."
        ),
        click.option("--overwrite", is_flag=True, help="Replace OUT, once the new one is whole."),
        click.option("--resume", is_flag=True, help="With torchrun: continue a run that did not finish."),
        click.option("--dry-run", is_flag=True, help="Plan and check, write nothing."),
        click.option(
            "--make-vocab-size-divisible-by", type=click.IntRange(1), metavar="N",
            help="Pad the vocabulary to a multiple of N times --tp.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


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


def _onnx(command: Callable[..., None]) -> Callable[..., None]:
    """Options of commands that can write ONNX."""
    for option in (
        click.option(
            "--in-place", is_flag=True, help="ONNX: add the graph to SRC, a Hugging Face directory; no OUT."
        ),
        click.option("--pack", is_flag=True, help="ONNX: weights in model.onnx.data, not in safetensors."),
        click.option(
            "--flavor", metavar="FLAVOR",
            help="ONNX: std (any runtime, left padding; default) or genai (onnxruntime's own attention).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _nemo1(command: Callable[..., None]) -> Callable[..., None]:
    """Options of commands that can write NeMo 1 archives."""
    return click.option(
        "--rank-files", is_flag=True,
        help="NeMo 1: a state dict for each rank, as NeMo before 2.0 reads it, not torch_dist.",
    )(command)  # fmt: skip


def _nemo2(command: Callable[..., None]) -> Callable[..., None]:
    """Options of commands that can write NeMo 2 directories."""
    return click.option(
        "--experts", type=click.Choice(["stacked", "singleton"]),
        help="NeMo 2: a key for all experts of a layer, which megatron-core's grouped GEMM and sequential "
        "experts both have there (default), or keys that nothing shares (its singleton_local_shards).",
    )(command)  # fmt: skip


_device = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu",
    help="Where values are decoded and cast, and short runs gathered; the result is the same.",
)  # fmt: skip


def _conversion(command: Callable[..., None]) -> Callable[..., None]:
    """Arguments and options of every command that converts."""
    command = _output(command)
    for option in (
        click.option(
            "--max-shard-size", "max_shard_nbytes", type=ByteSize(), default="5GB", show_default=True,
            help="Largest safetensors file.",
        ),
        click.option(
            "--head", type=click.Choice(["transducer", "ctc"]),
            help="Head of a hybrid speech model to convert.",
        ),
        _device,
        click.option("--exact", is_flag=True, help="With --dtype: refuse if a value would be rounded."),
        click.option(
            "--normalize-rows", is_flag=True,
            help="Baichuan 2: divide the rows of the output layer by their lengths. Lossy.",
        ),
        click.option(
            "--dequantize", is_flag=True,
            help="Accept weights that SRC holds only roughly (ONNX int4, int8).",
        ),
        click.option(
            "--dtype",
            metavar="DTYPE",
            help="float32, bfloat16, float16 or float64 (fp32, bf16, fp16, fp64); default: as it is.",
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
        click.argument("out", metavar="OUT", required=False),
        click.argument("src", metavar="SRC"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    Exit codes: 0 done, 1 verify found a difference, 2 usage, 3 corrupt input, 4 unsafe input,
    5 unsupported, 6 output error, 70 internal error, 128+n signal n.
    """


def _locate(src: str, revision: str | None, token: str | None, cache_dir: str | None, offline: bool) -> str:
    from .converters.sources import HubOptions, locate

    return str(locate(src, HubOptions(revision, token, cache_dir, offline)))


def _convert(
    src: str,
    out: str | None,
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
    from .converters.run.convert import convert

    in_place = options.pop("in_place", False)
    if out is None and not in_place:
        raise click.UsageError("Missing argument 'OUT'.")
    path = _locate(src, revision, token, cache_dir, offline)
    if in_place:
        report = _add_graph(path, out, to, options)
    else:
        with terminal.progress(show and not options["dry_run"]) as progress:
            report = convert(path, out or "", to=to, progress=progress, **options)
    if as_json:
        terminal.print_json(report.as_dict())
    elif not quiet:
        print("\n".join(terminal.report_lines(report, planned=options["dry_run"], verbose=verbose)))


def _add_graph(path: str, out: str | None, to: str, options: Mapping[str, Any]) -> Report:
    """--in-place: the directory stays as it is and gets model.onnx."""
    from .converters.run.onnx_in_place import add_graph

    if to != "onnx":
        raise click.UsageError("--in-place adds an ONNX graph: it goes with --to onnx")
    if out is not None and not (os.path.exists(out) and os.path.samefile(path, out)):
        raise click.UsageError("--in-place writes into SRC: leave out OUT")
    taken = ("flavor", "overwrite", "dry_run", "allow_ignored")
    context = click.get_current_context()
    given = [
        name
        for name in sorted(options.keys() - {*taken, "max_memory"})
        if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
    ]
    if given:
        raise click.UsageError(f"--in-place leaves the weights alone: leave out {', '.join(given)}")
    return add_graph(path, **{name: options[name] for name in taken})


def _reshard(
    src: str,
    out: str | None,
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
    from .converters.run.reshard import reshard

    path = _locate(src, revision, token, cache_dir, offline)
    if out is None and not os.path.exists(src):
        raise click.UsageError("give OUT as well when SRC is not a local path")
    with terminal.progress(show and not options["dry_run"]) as progress:
        report = reshard(path, out, progress=progress, **options)
    if as_json:
        terminal.print_json(report.as_dict())
    elif not quiet:
        print("\n".join(terminal.report_lines(report, planned=options["dry_run"], verbose=verbose)))


@main.command()
@_conversion
@_nemo2
@_source
@_common
def hf2nemo2(**arguments: Any) -> None:
    """Convert a Hugging Face directory into a NeMo 2 directory."""
    _convert(to="nemo2", **arguments)


@main.command()
@_conversion
@_nemo1
@_source
@_common
def hf2nemo(**arguments: Any) -> None:
    """Convert a Hugging Face directory into a NeMo 1 archive, OUT.nemo."""
    _convert(to="nemo", **arguments)


@main.command()
@_conversion
@_source
@_common
def nemo2hf(**arguments: Any) -> None:
    """Convert a NeMo checkpoint into a Hugging Face directory."""
    _convert(to="hf", **arguments)


@main.command()
@_conversion
@_onnx
@_source
@_common
def hf2onnx(**arguments: Any) -> None:
    """Write a Hugging Face directory with an ONNX graph beside its weights."""
    _convert(to="onnx", **arguments)


@main.command()
@_conversion
@_onnx
@_source
@_common
def nemo2onnx(**arguments: Any) -> None:
    """Convert a NeMo checkpoint into ONNX."""
    _convert(to="onnx", **arguments)


@main.command()
@_conversion
@_nemo1
@_nemo2
@_onnx
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="hf, nemo2, nemo, onnx or peft; the source's format is detected.",
)
@_source
@_common
def convert(**arguments: Any) -> None:
    """Convert any checkpoint into any format."""
    _convert(**arguments)


@main.command()
@_conversion
@_nemo1
@_nemo2
@_onnx
@click.option("--to", required=True, metavar="FORMAT", help="hf, nemo2, nemo or onnx.")
@_picture
@_source
@_common
def plan(**arguments: Any) -> None:
    """Show what convert would do: tensors, moves, bytes, memory, disk. Writes nothing."""
    _convert(**{**arguments, "dry_run": True})


@main.command()
@click.argument("src", metavar="[SRC]", default=".")
@click.argument("out", metavar="[OUT]", required=False)
@click.option("--tp", "tensor_parallel_size", type=click.IntRange(1), help="Tensor parallel size.")
@click.option("--pp", "pipeline_parallel_size", type=click.IntRange(1), help="Pipeline parallel size.")
@click.option(
    "--vpp", "virtual_pipeline_parallel_size", type=click.IntRange(1), help="Runs of layers per stage."
)
@click.option("--ep", "expert_parallel_size", type=click.IntRange(1), help="Expert parallel size.")
@click.option(
    "--etp", "expert_tensor_parallel_size", type=click.IntRange(1), help="Tensor parallel size of experts."
)
@click.option("--layout", metavar="FILE", help="YAML file that describes a layout; see docs/layout.md.")
@click.option("--layers", metavar="A-B", help="Only these layers, as a model of their own: 0-7, or 0-3,8.")
@click.option("--stage", type=click.IntRange(0), help="Only the layers of this pipeline stage of --pp.")
@click.option("--drop-optimizer", is_flag=True, help="Leave out optimizer state.")
@_device
@_picture
@_output
@_source
@_common
def reshard(src: str, out: str | None, **arguments: Any) -> None:
    """Write a checkpoint again, cut for another parallel layout.

    SRC is the current directory, and OUT a sibling of it named after the layout, unless given. Sizes that
    are not given are as in SRC. Format, config, tokenizer and optimizer state stay.
    """
    _reshard(src, out, **arguments)


@main.command()
@click.argument("path", metavar="PATH")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--grep", metavar="RE", help="List the tensors whose name this expression is found in.")
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
    print("\n".join(terminal.facts_lines(facts)))
    for row in rows or ():
        whose = f" (rank {row['rank']})" if "rank" in row else ""
        print(f"{row['dtype']:>9}  {row['shape']!s:<24} {row['name']}{whose}")


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
    from .converters.look.verify import verify as run

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
def supported(as_json: bool, quiet: bool, **_: Any) -> None:
    """List formats and architectures, where they come from and how each is verified."""
    from .converters.look.support import matrix

    facts = matrix()
    if as_json:
        terminal.print_json(facts)
        return
    if quiet:
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
def demo(folder: str | None, as_json: bool, quiet: bool, **_: Any) -> None:
    """Run the main job on a tiny built-in Llama: HF -> NeMo 2 (tp2) -> HF, verified.

    Everything is written below FOLDER (default: a temporary one that is removed).
    """
    from .ui.demo import run

    lines = []
    for line in run(folder):
        lines.append(line)
        if not (quiet or as_json):
            print(line, flush=True)
    if as_json:
        terminal.print_json({"lines": lines})
