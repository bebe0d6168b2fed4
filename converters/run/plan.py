"""Plan a conversion: everything that headers can tell is decided and checked before a byte is written."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import LayoutError, UnsupportedFormat, UsageError
from ...mappings.hf.fields import Value
from ...mappings.lora import is_adapter
from ...mappings.rules import padded_vocab_size
from ...mappings.table import Instance, check_layout, splits_groups
from ...resharding.plan import Job, Payload, Plan, Target
from ...stores.output import OutputDirectory
from ...tensors.dtypes import DType
from ...tensors.layout import Layout
from ...tensors.ranks import RankRow, rank_rows, table_lines
from ...tensors.stored import Extent, contiguous_strides
from ...version import __version__
from ..abilities import PadsVocabulary, Quantized, Repeating, Tokenized
from ..base import Checkpoint, Model, Request
from ..bind import Bound, Reservation, Reservations
from ..format import Format, Options
from ..hf.beside import tokenizer_note
from ..hf.tokenizer_files import vocabulary_size
from ..options import DEFAULT_MAX_MEMORY, VOCABULARY
from ..sink import Sink
from . import reading

if TYPE_CHECKING:
    from ...resharding.execute import Limits

#: what a job and its boxes take in memory, measured on a 405B-shaped plan
_JOB_NBYTES = 2_500


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
    rank_table: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verified: bool = False

    def as_dict(self) -> dict[str, Value]:
        return asdict(self)


@dataclass(slots=True)
class Conversion:
    """A planned conversion: everything is decided and checked, nothing is written."""

    source: Checkpoint
    output: OutputDirectory
    writer: Sink
    plan: Plan
    payloads: list[Payload]
    limits: Limits
    report: Report
    header: dict[str, Value]
    #: of targets that are cut by rank: who will hold what
    ranks: list[RankRow] = field(default_factory=list)
    num_layers: int = 0
    #: looks at weights that are made before anything is written
    before: Sequence[Callable[[], None]] = ()
    #: what the written checkpoint is read with, when it is verified and says nothing of its model itself
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a target: how it is cut, what type its weights have, what its own format may be told,
    and whether it is the source's format and everything but the layout stays (``rewrite``)."""

    layout: Layout = field(default_factory=Layout)
    dtype: DType | None = None
    options: Options = field(default_factory=dict)
    allow_ignored: tuple[str, ...] = ()
    max_memory: int = DEFAULT_MAX_MEMORY
    rewrite: bool = False
    #: threads that write; None: as many as there are cores
    workers: int | None = None


def prepare(source: Checkpoint, output: OutputDirectory, to: Format, wish: Wish) -> Conversion:
    """Plan a conversion and check everything that headers can tell.

    Raises MappingError, UnsupportedConfig, LayoutError, CorruptCheckpoint.
    """
    with _no_collection():
        return _prepare(source, output, to, wish)


def _writer(
    source: Checkpoint, output: OutputDirectory, to: Format, model: Model, layout: Layout, wish: Wish
) -> Sink:
    if not wish.rewrite:
        return to.create(output, model, layout, wish.options)
    writer = to.rewrite(source, output, model, layout, wish.options)
    if writer is None:
        raise _no_layout(source)
    return writer


def _no_layout(source: Checkpoint) -> UsageError:
    return UsageError(
        f"{source.path}: a checkpoint of format {source.format} has no parallel layout",
        hint="convert it to nemo2 with --tp, --pp and --ep",
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Planning makes a million small objects, none of them in a cycle: looking for cycles among them takes a
    fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _prepare(source: Checkpoint, output: OutputDirectory, to: Format, wish: Wish) -> Conversion:
    started = time.perf_counter()
    if wish.rewrite and to.side == "hf":
        raise _no_layout(source)
    if isinstance(source, Quantized):
        source.decode_as(wish.dtype)
    model = source.model(wish.allow_ignored)
    if to.name != "peft" and is_adapter(model.table):
        raise UnsupportedFormat(
            f"{source.path}: holds LoRA adapters, not a model", hint="merge them with their base first"
        )
    bound = Bound(source, model)
    notes = _settle_dtype(bound, model, wish.dtype)
    layout, more = _settle_layout(bound, to, wish.layout)
    notes += more
    sizes = model.sizes = _target_sizes(bound, to, layout, wish)
    notes += _vocabulary_notes(bound.sizes["vocab"], sizes["vocab"])
    if to.side == "nemo" and splits_groups(sizes, layout):
        notes.append(
            f"tensor_parallel_size={layout.tensor_parallel_size} is more than num_query_groups="
            f"{sizes['group']}: megatron-core 0.16 takes that, 0.14 refuses it"
        )
    if isinstance(source, Tokenized):
        files = source.tokenizer_files
        tokens = (
            vocabulary_size({"tokenizer.json": files["tokenizer.json"]})
            if "tokenizer.json" in files
            else None
        )
        notes += tokenizer_note(tokens, bound.sizes["vocab"])
    writer = _writer(source, output, to, model, layout, wish)
    if not writer.keeps_everything:
        notes += [f"{count:,} {what} not converted" for what, count in source.skipped().items()]
    writer.begin(bound)
    read = [*source.notes(), *model.notes, *reading.notes(bound)]
    plan, payloads = _build_plan(bound, writer, layout, wish.dtype)
    for checkpoint, companion in writer.companions().values():
        held = Bound(checkpoint, model, partial=True)
        state, added = _build_plan(held, companion, layout, None)
        plan.jobs += state.jobs
        payloads += added
    notes += writer.notes()
    plan.check()
    for step in bound.steps:
        notes += [*step.check(bound, rewrites=writer.keeps_everything), *step.notes(bound, to.side)]
    if isinstance(source, Repeating):
        from .compare import check_repeated

        check_repeated(source)
    limits, plan_nbytes = make_limits(plan, wish)
    report = Report(
        source=str(source.path),
        source_format=source.format,
        target=str(output.target),
        target_format=to.name,
        architecture=model.table.architecture,
        layout=str(layout),
        parameters=sum(_count(bound, instance) for instance in bound.instances),
        tensors_in=len(bound.names),
        tensors_out=writer.tensor_count,
        moves=plan.moves,
        read_nbytes=plan.read_nbytes,
        write_nbytes=plan.write_nbytes,
        peak_memory_nbytes=limits.nbytes + plan_nbytes + resident_nbytes(),
        free_disk_nbytes=output.free_bytes(),
        files=len({payload.file.name for payload in payloads}),
        plan_seconds=time.perf_counter() - started,
        inert_keys=sorted(model.inert),
        ignored_keys=model.ignored,
        notes=[*read, *notes],
    )
    header: dict[str, Value] = {
        "written_by": f"nemoconv {__version__}",
        "format": to.name,
        "architecture": model.table.architecture,
        "source_format": source.format,
        "source_notes": read,
        "dtype": wish.dtype.name if wish.dtype else None,
        "layout": asdict(layout),
        "model_config": model.config,
        "padded_vocab_size": sizes["vocab"],
        "inert_config": model.inert,
        "ignored_config_keys": model.ignored,
    }
    ranks = _ranks(writer, payloads, bound, layout) if writer.side == "nemo" else []
    report.rank_table.extend(table_lines(ranks, bound.sizes["layers"]) if ranks else ())
    before = [
        partial(step.compare, str(source.path), bound.repeated(step)) for step in bound.steps if step.compares
    ]
    return Conversion(
        source, output, writer, plan, payloads, limits, report, header, ranks, bound.sizes["layers"], before
    )


def _ranks(writer: Sink, payloads: Sequence[Payload], bound: Bound, layout: Layout) -> list[RankRow]:
    """Who will hold what, with the bytes in each rank's files."""
    held: dict[str, int] = {}
    for payload in payloads:
        held[payload.file.name] = held.get(payload.file.name, 0) + payload.nbytes
    files = {rank: writer.files_of(rank) for rank in range(layout.world_size)}
    nbytes = {rank: sum(held.get(name, 0) for name in names) for rank, names in files.items() if names}
    return rank_rows(layout, bound.sizes["layers"], bound.sizes.get("experts", 0), nbytes)


def _settle_dtype(bound: Bound, model: Model, dtype: DType | None) -> list[str]:
    """Set ``params_dtype`` to what will be written; a note if the source's config said otherwise."""
    if dtype is not None:
        model.config["params_dtype"] = dtype.name
        return []
    stated, usual = model.config.get("params_dtype"), bound.usual_dtype().name
    model.config["params_dtype"] = usual
    if stated in (None, usual):
        return []
    return [f"the config says {stated}, the tensors are {usual}: they are written as they are"]


def _settle_layout(bound: Bound, to: Format, layout: Layout) -> tuple[Layout, list[str]]:
    """The layout as Megatron deals layers and experts that do not come out even, and notes on it."""
    dealt = layout.dealt(bound.sizes["layers"]) if to.uneven_stages else layout
    notes = []
    if dealt != layout:
        counts = [len(layers) for layers in dealt.layers(bound.sizes["layers"])]
        notes = [
            f"{bound.sizes['layers']} layers do not come out even on the stages, which get {_counts(counts)}"
        ]
    layout, more = _settle_experts(bound.model, to, dealt)
    return layout, notes + more


def _counts(counts: Sequence[int]) -> str:
    """``[7, 8, 8, 7]`` as "7, 2 times 8, 7"."""
    runs = [(count, len(list(same))) for count, same in groupby(counts)]
    return ", ".join(f"{length} times {count}" if length > 1 else str(count) for count, length in runs)


def _settle_experts(model: Model, to: Format, layout: Layout) -> tuple[Layout, list[str]]:
    """Experts that Megatron does not cut are whole on their ranks. Raises LayoutError for another wish."""
    if to.side != "nemo" or not model.table.whole_experts or layout.tensor_parallel_size_of_experts == 1:
        return layout, []
    if layout.expert_tensor_parallel_size is not None:
        raise LayoutError(
            f"the experts of {model.table.architecture!r} have biases, which megatron-core does not cut",
            hint="set expert_tensor_parallel_size to 1",
        )
    whole = replace(layout, expert_tensor_parallel_size=1)
    note = "experts with biases are not cut: megatron-core needs expert_tensor_parallel_size=1 for them"
    return whole, [note]


def _target_sizes(bound: Bound, to: Format, layout: Layout, wish: Wish) -> dict[str, int]:
    """Sizes of the target's tensors. Raises LayoutError if the layout does not divide them."""
    sizes = {**bound.sizes, "vocab": bound.sizes["true_vocab"]}
    if to.side == "hf":
        if layout != Layout():
            raise LayoutError(
                f"the format {to.name} has no parallel layout", hint="leave out --tp, --pp, --ep and --layout"
            )
        return sizes
    divisor = VOCABULARY.of(wish.options)
    if divisor is None and wish.rewrite and isinstance(bound.checkpoint, PadsVocabulary):
        divisor = bound.checkpoint.vocab_divisor
    sizes["vocab"] = padded_vocab_size(sizes["true_vocab"], divisor, layout.tensor_parallel_size)
    check_layout(bound.model.table, bound.model.config, sizes, layout)
    return sizes


def _vocabulary_notes(held: int, written: int) -> list[str]:
    """Rows that pad the vocabulary on both sides are carried as they are."""
    if held > written:
        return [f"{held - written:,} rows of vocabulary padding left out"]
    return [f"vocabulary padded from {held:,} to {written:,} rows with zeros"] if written > held else []


def _build_plan(
    bound: Bound, writer: Sink, layout: Layout, dtype: DType | None
) -> tuple[Plan, list[Payload]]:
    sizes = bound.model.sizes
    wide = {**sizes, "vocab": max(sizes["vocab"], bound.sizes["vocab"])}
    asked: list[tuple[Instance, DType, DType, list[Reservation]]] = []
    requests: dict[Request, None] = {}
    reservations = Reservations(writer.side, sizes, layout, bound.model)
    for instance in bound.instances:
        source = bound.dtype(instance)
        casts = source.is_floating_point and not instance.rule.keeps_dtype
        target = dtype if dtype and casts else source
        boxes = reservations.of(instance, target)
        same = writer.side == bound.checkpoint.side  # then what is stored once stays so
        again = [
            each for each in reservations.copies(boxes) if not same or each[0].request.name in bound.names
        ]
        again = again if writer.stores_again else []
        for group in (boxes, *again):
            requests.update(dict.fromkeys(box.request for box in group))
            asked.append((instance, source, target, group))
    payloads = dict(zip(requests, writer.reserve(list(requests)), strict=True))
    plan = Plan()
    for instance, source, target, boxes in asked:
        space = bound.space(instance.rule, wide)
        targets: list[Target] = []
        for box in boxes:
            request = box.request
            strides = contiguous_strides(request.box, target.itemsize)
            offset = sum((a - b) * n for a, b, n in zip(box.start, request.start, strides, strict=True))
            # a part's extent counts from its own start, a chunk's from the tensor's
            start = box.start if box.part is None else (0,) * len(box.box)
            extent = Extent(None, offset, start, box.box, strides)  # type: ignore[arg-type]
            for _, place, low, shape, steps in space.place(box.part, sizes, extent):
                targets.append(Target(payloads[request], place, low, shape, steps))
        sources = bound.extents(instance, space)
        loose = instance.rule.pad is not None or not instance.in_hf
        plan.jobs.append(
            Job(instance.nemo, space.shape, source, target, sources, tuple(targets), loose, loose)
        )
    return plan, list(payloads.values())


def _count(bound: Bound, instance: Instance) -> int:
    count = 1
    for factor in instance.rule.view.factors:
        count *= bound.sizes["true_vocab"] if factor == "vocab" else bound.sizes[factor]
    return count


def disk_shortage(report: Report) -> str | None:
    """What is missing on the target's file system, None if nothing is."""
    if report.free_disk_nbytes >= report.write_nbytes + (16 << 20):  # frames and small files besides
        return None
    return (
        f"{report.target}: {report.write_nbytes / 1e9:,.1f} GB are needed, "
        f"{report.free_disk_nbytes / 1e9:,.1f} GB are free"
    )


def make_limits(plan: Plan, wish: Wish) -> tuple[Limits, int]:
    """What a run of this plan may take of what is wished, and the bytes of the plan itself."""
    from ...resharding.execute import Limits

    plan_nbytes = _JOB_NBYTES * len(plan.jobs)
    return Limits.within(wish.max_memory, plan_nbytes, wish.workers), plan_nbytes


def resident_nbytes() -> int:
    """Memory of the process before any buffer."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak so far, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
