"""Change how a model is cut while it is in memory: every rank gives its shard and receives another.

Tensors travel by ``torch.distributed``: NCCL between GPUs, gloo between CPUs, by the same code. Bytes
are moved and never computed with, so the result has the bits of the source, whatever the element type.
What moves is planned from the tables that conversion on disk uses, once; a step then costs one small
all-reduce, in which the ranks agree that nothing is wrong, and the moving itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import MappingError, NemoconvError, UsageError
from ..extras import import_extra
from ..mappings import load_table, table_for
from ..mappings.hf.fields import Value, read_config
from ..mappings.table import Table
from ..tensors.layout import Layout
from .agree import Offer, agree
from .placement import Names, Placement
from .plan import LivePlan, plan_reshard
from .reshard import BUCKET_NBYTES, LiveReshard
from .state import States
from .transport import backend_device

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


def placements(
    source: Layout,
    target: Layout,
    world_size: int,
    *,
    source_ranks: Sequence[int] | None = None,
    target_ranks: Sequence[int] | None = None,
    source_names: Names = "megatron",
    target_names: Names = "megatron",
    source_padded_vocab_size: int | None = None,
    target_padded_vocab_size: int | None = None,
) -> tuple[Placement, Placement]:
    """Source and target placement in a group of ``world_size`` ranks; all of them take part unless told."""
    everyone = tuple(range(world_size))
    return (
        Placement(
            source,
            everyone if source_ranks is None else tuple(source_ranks),
            source_names,
            source_padded_vocab_size,
        ),
        Placement(
            target,
            everyone if target_ranks is None else tuple(target_ranks),
            target_names,
            target_padded_vocab_size,
        ),
    )


def model_config(table: Table | str | None, config: Mapping[str, Value]) -> tuple[Table, dict[str, Value]]:
    """The table and the config in Megatron's names, from a config.json's content or from those names.

    Only the latter can say that layers which predict further tokens take part (``mtp_num_layers``).

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


def reshard_state_dict(
    state_dict: States,
    *,
    source: Layout,
    target: Layout,
    config: Mapping[str, Value],
    table: Table | str | None = None,
    group: ProcessGroup | None = None,
    out: States = None,
    release_source: bool = False,
    bucket_nbytes: int = BUCKET_NBYTES,
    transport: str = "p2p",
    **placement: Any,
) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
    """Give this rank's shard of a model in the layout ``source``, receive that in the layout ``target``.

    Every rank of ``group`` calls it. ``config`` is the content of config.json (or, with ``table``, the
    model config in Megatron's names). ``placement`` takes ``source_ranks``, ``target_ranks`` (ranks of
    the group, all by default; they may be disjoint), ``source_names``, ``target_names`` ("megatron" or
    "hf") and ``source_padded_vocab_size``, ``target_padded_vocab_size`` (rows). See
    :meth:`LiveReshard.run` for the rest. For the same change at every step, keep a :class:`LiveReshard`:
    it also keeps staging buffers, or the other ranks' memory open, which are given back here.

    Raises the errors of :mod:`nemoconv.errors`, on all ranks or on none.
    """
    import_extra("torch", "resharding between ranks")
    import torch.distributed as dist

    try:
        world_size = dist.get_world_size(group)
        sides = placements(source, target, world_size, **placement)
        plan = _cached_plan(*model_config(table, config), sides, world_size)
        runner = LiveReshard(plan, group=group, bucket_nbytes=bucket_nbytes, transport=transport)
    except NemoconvError as error:
        _announce(error, group)
        raise
    try:
        return runner.run(state_dict, out=out, release_source=release_source)
    finally:
        runner.clear()


def _announce(error: NemoconvError, group: ProcessGroup | None) -> None:
    """Tell the other ranks, which may have a plan, that this one has none."""
    with suppress(MappingError):
        agree(Offer(0, [str(error)]), changed=True, device=backend_device(group), group=group)


#: the last few plans of :func:`reshard_state_dict`, which makes one for each call otherwise
_PLANS: dict[tuple[Any, ...], LivePlan] = {}
_MOST_PLANS = 8


def _cached_plan(
    table: Table, config: Mapping[str, Value], sides: tuple[Placement, Placement], world_size: int
) -> LivePlan:
    key = table.architecture, table.rules, repr(sorted(config.items())), sides, world_size
    plan = _PLANS.get(key)
    if plan is None:
        plan = plan_reshard(table, config, *sides, world_size=world_size)
        while len(_PLANS) >= _MOST_PLANS:
            _PLANS.pop(next(iter(_PLANS)))
        _PLANS[key] = plan
    return plan
