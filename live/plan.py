"""What moves where when sharded tensors in memory change hands, as plain data that every rank can pickle.

:func:`plan_reshard` puts two placements of a model through a table: each logical tensor becomes a
:class:`Transfer`, the boxes that ranks hold before and after in the coordinates of its rule, and where
these boxes meet. Sizes count elements: element types are the tensors' own and become known when they are
there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from ..errors import LayoutError, MappingError, UnsupportedError, UsageError
from ..mappings import load_table, table_for
from ..mappings.hf.fields import Value, read_config
from ..mappings.rules import padded_vocab_size
from ..mappings.table import Table, check_layout
from ..tensors.boxes import Shape, intersect
from .placement import Local, PlacedBox, Placement, Side

#: (index of the source piece, index of the target piece, start and shape of what they share)
Overlap = tuple[int, int, Shape, Shape]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One logical tensor: who holds what before and after, and where the boxes meet."""

    name: str
    sources: tuple[PlacedBox, ...]
    targets: tuple[PlacedBox, ...]
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True, slots=True)
class LivePlan:
    """Everything that a change of placement moves. Made once, used every step, the same on all ranks.

    ``filled`` are the keys of local target tensors that also have elements without a source: rows that
    pad a vocabulary, biases that the other side leaves out. They become 0. ``zeros`` are source tensors
    that the target's names have no place for and that must therefore be 0. ``copies`` are names a rank
    may hold besides, as copies of what another rank sends (tied embeddings); ``ignored`` are templates of
    names that carry nothing.
    """

    source: Placement
    target: Placement
    world_size: int
    transfers: tuple[Transfer, ...]
    filled: frozenset[tuple[int, tuple[int, str]]]
    zeros: tuple[PlacedBox, ...]
    copies: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    digest: int = field(default=0)

    def locals(self, rank: int, side: Literal["source", "target"]) -> dict[tuple[int, str], Local]:
        """The tensors that a rank gives or receives."""
        found: dict[tuple[int, str], Local] = {}
        for transfer in self.transfers:
            for piece in transfer.sources if side == "source" else transfer.targets:
                if rank in piece.ranks:
                    found.setdefault(piece.local.key, piece.local)
        if side == "source":
            for piece in self.zeros:
                if rank in piece.ranks:
                    found.setdefault(piece.local.key, piece.local)
        return found


def model_config(table: Table | str | None, config: Mapping[str, Value]) -> tuple[Table, dict[str, Value]]:
    """The table and the config in Megatron's names, from a config.json's content or from those names.

    Only the latter can say that multi-token prediction takes part (``mtp_num_layers``).

    Raises UsageError, UnsupportedArchitecture, UnsupportedConfig.
    """
    if table is None and "model_type" not in config:
        raise UsageError("the config has no model_type", hint="pass the table, or the content of config.json")
    if isinstance(table, str):
        table = load_table(table)
    if table is None:
        table = table_for(config, "config")
    if "model_type" in config:
        found = read_config(table.fields, config)[0]
        if "mtp_num_layers" in found:  # transformers counts them in every config and builds none
            found["mtp_num_layers"] = 0
        return table, found
    return table, dict(config)


def plan_reshard(
    table: Table,
    config: Mapping[str, Value],
    source: Placement,
    target: Placement,
    *,
    world_size: int,
) -> LivePlan:
    """Plan a change of placement; ``config`` is the model config in Megatron's names.

    Needs no process group and no tensors. Raises LayoutError, MappingError, UsageError, and UnsupportedError
    where one side's names mean other values than the other's.
    """
    if config.get("unit_rows") is False and source.names != target.names:
        raise UnsupportedError(
            f"{table.normalized_head[0]}: its rows are divided by their lengths whenever the model runs, "
            "which Megatron's output layer does not do",
            hint="convert the checkpoint on disk, and start from that",
        )
    base = table.sizes(config)
    for placement, what in ((source, "source"), (target, "target")):
        placement.check(world_size, what)
    before, after = (_sizes(base, placement) for placement in (source, target))
    check_layout(table, config, before, source.layout)
    check_layout(table, config, after, target.layout)
    wide = {**base, "vocab": max(before["vocab"], after["vocab"])}
    sides = (
        Side(table, config, source, before, wide, receives=False),
        Side(table, config, target, after, wide, receives=True),
    )
    pieces = [side.pieces() for side in sides]
    transfers: list[Transfer] = []
    filled: set[tuple[int, tuple[int, str]]] = set()
    zeros: list[PlacedBox] = []
    known: dict[tuple[object, ...], tuple[Overlap, ...]] = {}
    for number, instance in enumerate(sides[0].instances):
        given, wanted = pieces[0][number], pieces[1][number]
        key = (tuple((p.start, p.shape) for p in given), tuple((p.start, p.shape) for p in wanted))
        overlaps = known.get(key)
        if overlaps is None:
            overlaps = known[key] = _meet(given, wanted)
        loose = instance.rule.pad is not None or not instance.in_hf
        gaps = _uncovered(wanted, overlaps)
        if (gaps or _left_over(given, overlaps)) and not loose:
            raise MappingError(f"{instance.nemo}: the two placements hold different parts of it")
        for j in gaps:
            filled.update((rank, wanted[j].local.key) for rank in wanted[j].ranks)
        if not wanted:
            zeros.extend(given)
            continue
        transfers.append(Transfer(instance.nemo, given, wanted, overlaps))
    copies = tuple(copy for copy, _ in table.tied)
    if base.get("depths"):  # for multi-token prediction the last stage embeds tokens too
        copies += tuple(original for _, original in table.tied)
    text = repr((table.architecture, sorted(wide.items()), source, target, world_size))
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
    return LivePlan(
        source,
        target,
        world_size,
        tuple(transfers),
        frozenset(filled),
        tuple(zeros),
        copies,
        table.ignored,
        digest,
    )


def _sizes(base: Mapping[str, int], placement: Placement) -> dict[str, int]:
    """Sizes of one side's tensors: Megatron's vocabulary is padded so that all ranks hold equally many."""
    true, padded = base["true_vocab"], placement.padded_vocab_size
    ways = placement.layout.tensor_parallel_size
    if padded is None:
        padded = padded_vocab_size(true, None, ways)
    if padded < true or padded % ways:
        raise LayoutError(
            f"padded_vocab_size={padded:,} must be at least vocab_size={true:,} and a multiple of "
            f"tensor_parallel_size={ways}"
        )
    return {**base, "vocab": padded}


def _meet(given: Sequence[PlacedBox], wanted: Sequence[PlacedBox]) -> tuple[Overlap, ...]:
    found = []
    for j, target in enumerate(wanted):
        for i, source in enumerate(given):
            common = intersect(source.start, source.shape, target.start, target.shape)
            if common is not None:
                found.append((i, j, *common))
    return tuple(found)


def _uncovered(wanted: Sequence[PlacedBox], overlaps: Iterable[Overlap]) -> list[int]:
    """Target pieces some of whose elements have no source."""
    missing = [prod(piece.shape) for piece in wanted]
    for _, j, _, shape in overlaps:
        missing[j] -= prod(shape)
    return [j for j, count in enumerate(missing) if count]


def _left_over(given: Sequence[PlacedBox], overlaps: Iterable[Overlap]) -> bool:
    """Whether source elements have no target. A tied embedding's copy gives each element two."""
    used: dict[int, set[tuple[Shape, Shape]]] = {}
    for i, _, low, shape in overlaps:
        used.setdefault(i, set()).add((low, shape))
    return any(
        sum(prod(shape) for _, shape in used.get(i, ())) < prod(piece.shape) for i, piece in enumerate(given)
    )
