"""Give a checkpoint another parallel layout; its format and everything else stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from ...errors import UsageError
from ...resharding.devices import check_device
from ...stores.output import OutputDirectory
from ...tensors.layout import Layout, even
from ...tensors.ranks import spans
from .. import source_manifest
from ..abilities import Layered
from ..base import Checkpoint
from ..layers import parse_layers
from ..layouts import asked_sizes, default_target, settle_layout
from ..options import COMMON, EXACT, Common, Settings, said
from ..registry import check_known, recognize, split_options
from .convert import Progress, carry_out, place
from .plan import Report, Wish, prepare


def reshard(
    source: str | Path = ".",
    target: str | Path | None = None,
    *,
    layout: Layout | str | Path | None = None,
    layers: str | None = None,
    stage: int | None = None,
    drop_optimizer: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    **options: Unpack[Common],
) -> Report:
    """Write the checkpoint at ``source`` again, cut for another layout, in its own format.

    ``layout`` is a :class:`Layout` or a YAML file (docs/layout.md). ``tensor_parallel_size`` and the like win
    over it; what neither says is as in the source. ``target`` defaults to a sibling named after the layout,
    ``model-tp2-pp1``. Rows that pad the vocabulary are counted anew, to a multiple of
    ``make_vocab_size_divisible_by`` times the tensor-parallel size. Optimizer state goes along where the
    format keeps it for each parameter; where it does not, UnsupportedError says so unless
    ``drop_optimizer``. Nothing else is left out: see the report's notes.

    ``layers`` ("0-7", "0-3,8") makes a model of these layers only, numbered from 0, with the embedding, the
    final norm and the output layer of the whole; ``stage`` one of the layers that this pipeline rank of the
    layout would hold, on one pipeline rank. UnsupportedConfig where layers are not alike.

    Other ``options`` are as in :func:`nemoconv.convert`.

    Raises the errors of :mod:`nemoconv.errors`; the target is then absent, or what it was before.
    """
    given = said(options)
    check_known(given, tuple(option for option in COMMON if option is not EXACT))
    settings, sizes = Settings.of(given), asked_sizes(given)
    check_device(settings.device)
    found = recognize(Path(source))
    own = {name: value for name, value in given.items() if name not in {option.name for option in COMMON}}
    reading, writing = split_options(own, found, found)
    ignored = settings.ignore_manifest
    with source_manifest.opened(found, Path(source), reading, ignore=ignored) as (opened, told):
        wanted = settle_layout(opened.layout, sizes, layout)
        notes: list[str] = []
        if layers is not None or stage is not None:
            if verify and "config" in reading:
                raise UsageError("verify of some layers would need a config.json of its own")
            wanted, notes = take_layers(opened, wanted, layers, stage)
        target = target or default_target(source, wanted, layers, stage)
        # an unpacked archive stays unpacked
        make = OutputDirectory if Path(source).is_dir() else found.output
        output = place(make, target, Path(source), overwrite=overwrite, dry_run=dry_run)
        writing["drop_optimizer"] = drop_optimizer
        wish = Wish(
            wanted,
            None,
            writing,
            settings.allow_ignored,
            settings.max_memory,
            rewrite=True,
            workers=settings.workers,
        )
        conversion = prepare(opened, output, found, wish)
        conversion.report.notes.extend(notes)
        told.compare(conversion)
        conversion.config = Path(reading["config"]) if "config" in reading else None
        return carry_out(conversion, settings, verify=verify, dry_run=dry_run, progress=progress)


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
        layout = replace(layout, pipeline_parallel_size=1, virtual_pipeline_parallel_size=1, **even())
    if not isinstance(source, Layered):
        raise UsageError(f"{source.path}: no layers can be taken out of the format {source.format}")
    source.keep_layers(chosen)
    return layout, [f"{len(chosen)} of {count} layers, numbered from 0: {', '.join(spans(chosen))}"]
