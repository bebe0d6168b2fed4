"""Give a checkpoint another parallel layout; its format and everything else stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...errors import OutputError, UsageError
from ...formats.text import plain_yaml
from ...resharding.devices import check_device
from ...resharding.layout_file import parse_layout
from ...stores.output import OutputDirectory
from ...tensors.layout import Layout
from ...tensors.ranks import spans
from ..base import Checkpoint, Converter, Model, WriteOptions, Writer
from ..layers import parse_layers
from ..registry import converter, open_checkpoint
from .convert import Progress, run
from .plan import DEFAULT_MAX_MEMORY, Conversion, Report, disk_shortage, prepare

_SUFFIX = re.compile(r"-tp\d+-pp\d+(-vpp\d+)?(-ep\d+)?(-etp\d+)?(-uneven)?$")


class _SameFormat(Converter):
    """Stands in for the source's own format: writes through the open checkpoint."""

    looks_for = ""
    title = ""

    def __init__(self, source: Checkpoint, *, drop_optimizer: bool) -> None:
        self._source, self._drop_optimizer = source, drop_optimizer
        self.name, self.side = source.format, source.side  # type: ignore[misc]

    def recognizes(self, path: Path) -> bool:
        return False

    def open(self, path: Path, *, config: Path | None = None) -> Checkpoint:
        raise NotImplementedError

    def create(
        self, output: OutputDirectory, model: Model, options: WriteOptions, sizes: Mapping[str, int]
    ) -> Writer:
        return self._source.resharder(output, model, options, sizes, drop_optimizer=self._drop_optimizer)


def reshard(
    source: str | Path = ".",
    target: str | Path | None = None,
    *,
    tensor_parallel_size: int | None = None,
    pipeline_parallel_size: int | None = None,
    virtual_pipeline_parallel_size: int | None = None,
    expert_parallel_size: int | None = None,
    expert_tensor_parallel_size: int | None = None,
    layout: Layout | str | Path | None = None,
    layers: str | None = None,
    stage: int | None = None,
    drop_optimizer: bool = False,
    make_vocab_size_divisible_by: int | None = None,
    overwrite: bool = False,
    max_memory: int = DEFAULT_MAX_MEMORY,
    verify: bool = False,
    dry_run: bool = False,
    allow_ignored: Sequence[str] = (),
    config: str | Path | None = None,
    picture: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the checkpoint at ``source`` again, cut for another layout, in its own format.

    ``layout`` is a :class:`Layout` or a YAML file (docs/layout.md). Sizes win over it; what neither says
    is as in the source. ``target`` defaults to a sibling named after the layout, ``model-tp2-pp1``. Rows
    that pad the vocabulary are counted anew, to a multiple of ``make_vocab_size_divisible_by`` times the
    tensor-parallel size. Optimizer state goes along where the format keeps it for each parameter; where
    it does not, UnsupportedError says so unless ``drop_optimizer``. Nothing else is left out: see the
    report's notes.

    ``layers`` ("0-7", "0-3,8") makes a model of these layers only, numbered from 0, with the embedding, the
    final norm and the output layer of the whole; ``stage`` one of the layers that this pipeline rank of the
    layout would hold, on one pipeline rank. UnsupportedConfig where layers are not alike.

    ``picture`` is an .svg or .html file to draw the plan in. ``device`` ("cpu" or "cuda") is where short runs
    are gathered; the result is the same.

    Raises the errors of :mod:`nemoconv.errors`; the target is then absent, or what it was before.
    """
    sizes = {
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "virtual_pipeline_parallel_size": virtual_pipeline_parallel_size,
        "expert_parallel_size": expert_parallel_size,
        "expert_tensor_parallel_size": expert_tensor_parallel_size,
    }
    check_device(device)
    with open_checkpoint(source, config=config) as opened:
        wanted = settle_layout(opened.layout, {k: v for k, v in sizes.items() if v is not None}, layout)
        notes: list[str] = []
        if layers is not None or stage is not None:
            if verify and config is not None:
                raise UsageError("verify of some layers would need a config.json of its own")
            wanted, notes = take_layers(opened, wanted, layers, stage)
        target = target or default_target(source, wanted, layers, stage)
        # an unpacked archive stays unpacked
        make = OutputDirectory if Path(source).is_dir() else converter(opened.format).output
        output = make(target, overwrite=overwrite)
        output.check((Path(source),))
        conversion = plan_reshard(
            opened,
            output,
            wanted,
            drop_optimizer=drop_optimizer,
            make_vocab_size_divisible_by=make_vocab_size_divisible_by,
            max_memory=max_memory,
            allow_ignored=allow_ignored,
        )
        conversion.report.notes.extend(notes)
        conversion.config = Path(config) if config is not None else None
        if picture is not None:
            from .picture import write_picture

            write_picture(picture, conversion)
        shortage = disk_shortage(conversion.report)
        if dry_run:
            notes = [f"not enough disk: {shortage}"] if shortage else []
            return replace(conversion.report, notes=[*conversion.report.notes, *notes])
        if shortage and not resume:  # what is resumed has its place already
            raise OutputError(shortage, hint="free space or choose another file system")
        return run(conversion, verify=verify, device=device, resume=resume, progress=progress)


def plan_reshard(
    source: Checkpoint,
    output: OutputDirectory,
    layout: Layout,
    *,
    drop_optimizer: bool = False,
    make_vocab_size_divisible_by: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    allow_ignored: Sequence[str] = (),
) -> Conversion:
    """Plan a change of layout and check everything that headers can tell; nothing is written."""
    if source.side == "hf":
        raise UsageError(
            f"{source.path}: a Hugging Face directory has no parallel layout",
            hint="convert it to nemo2 with --tp, --pp and --ep",
        )
    divisor = make_vocab_size_divisible_by or source.vocab_divisor
    options = WriteOptions(layout, make_vocab_size_divisible_by=divisor)
    to = _SameFormat(source, drop_optimizer=drop_optimizer)
    return prepare(source, output, to, options, allow_ignored=allow_ignored, max_memory=max_memory)


def take_layers(
    source: Checkpoint, layout: Layout, layers: str | None, stage: int | None
) -> tuple[Layout, list[str]]:
    """Have ``source`` be a model of some of its layers; the layout of that model, and a note on it.

    Raises UsageError for layers or a stage that are not there, UnsupportedConfig where layers are not alike.
    """
    if layers is not None and stage is not None:
        raise UsageError("layers and stage exclude each other")
    count = source.model().config["num_layers"]
    if layers is not None:
        chosen = parse_layers(layers)
    else:
        assert stage is not None
        size = layout.pipeline_parallel_size
        if not 0 <= stage < size:
            raise UsageError(f"there is no pipeline stage {stage}: pipeline_parallel_size={size}")
        chosen = tuple(layer for layer in range(count) if layout.stage(layer, count) == stage)
        if not chosen:
            raise UsageError(f"pipeline stage {stage} holds no layers", hint="a model has at least one")
        layout = replace(layout, pipeline_parallel_size=1, virtual_pipeline_parallel_size=1, **_even())
    source.keep_layers(chosen)
    return layout, [f"{len(chosen)} of {count} layers, numbered from 0: {', '.join(spans(chosen))}"]


def _even() -> dict[str, Any]:
    """The settings of layouts that deal layers unevenly, saying that this one does not."""
    even = Layout()
    return {f.name: getattr(even, f.name) for f in fields(Layout) if not f.name.endswith("_size")}


def settle_layout(base: Layout, sizes: Mapping[str, Any], said: Layout | str | Path | None) -> Layout:
    """The layout asked for: sizes, then the file, then what the source has.

    How layers are dealt unevenly is the source's only while the number of stages stays.
    """
    if isinstance(said, Layout):
        return replace(said, **sizes)
    where, value = "layout", {}
    if said is not None:
        where = str(said)
        try:
            value = plain_yaml.loads_mapping(Path(said).read_bytes(), where)
        except OSError as error:
            raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
    asked: dict[str, Any] = {**value, **sizes}
    pipeline = asked.get("pipeline_parallel_size") or base.pipeline_parallel_size
    virtual = asked.get("virtual_pipeline_parallel_size") or base.virtual_pipeline_parallel_size
    if pipeline == 1 and "virtual_pipeline_parallel_size" not in asked:
        virtual = 1
    if (pipeline, virtual) != (base.pipeline_parallel_size, base.virtual_pipeline_parallel_size):
        base = replace(base, virtual_pipeline_parallel_size=1, **_even())
        if asked.get("stages") is None:
            asked["virtual_pipeline_parallel_size"] = virtual
    return parse_layout(asked, where, base)


def default_target(
    source: str | Path, layout: Layout, layers: str | None = None, stage: int | None = None
) -> Path:
    """A sibling of the source named after the layout: ``model-tp2-pp1``."""
    path = Path(source).resolve()
    suffix = path.suffix if path.is_file() else ""
    stem = _SUFFIX.sub("", path.name.removesuffix(suffix))
    parts = [f"tp{layout.tensor_parallel_size}", f"pp{layout.pipeline_parallel_size}"]
    if layout.virtual_pipeline_parallel_size > 1:
        parts.append(f"vpp{layout.virtual_pipeline_parallel_size}")
    if layout.expert_parallel_size > 1:
        parts.append(f"ep{layout.expert_parallel_size}")
    if layout.expert_tensor_parallel_size is not None:
        parts.append(f"etp{layout.expert_tensor_parallel_size}")
    even = Layout(
        layout.tensor_parallel_size,
        layout.pipeline_parallel_size,
        layout.expert_parallel_size,
        layout.virtual_pipeline_parallel_size,
        layout.expert_tensor_parallel_size,
    )
    if layout != even:
        parts.append("uneven")
    if layers is not None:
        parts.insert(0, "layers" + re.sub(r"[^\d,-]", "", layers))
    if stage is not None:
        parts.insert(0, f"stage{stage}")
    return path.parent / ("-".join([stem, *parts]) + suffix)
