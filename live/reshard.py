"""Change how a model is cut while it is in memory: every rank gives its shard and receives another.

Tensors travel by ``torch.distributed``: NCCL between GPUs, gloo between CPUs, by the same code. Bytes
are moved and never computed with, so the result has the bits of the source, whatever the element type.
What moves is planned from the tables that conversion on disk uses, once; a step then costs one small
all-reduce, in which the ranks agree that nothing is wrong, and the moving itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import MappingError, NemoconvError, UsageError
from ..extras import import_extra
from ..mappings.hf.fields import Value
from ..mappings.table import Table
from ..tensors.layout import Layout
from . import peer as live_peer
from . import state as live_state
from .agree import Offer, agree, settle_types
from .peer import PeerStep
from .placement import Local, Placement, placements
from .plan import LivePlan, model_config, plan_reshard
from .schedule import schedule
from .state import Held, States
from .step import LiveReport, LiveStep, Prepared
from .transport import TRANSPORTS, Queues, StreamQueues, backend_device

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

#: staging memory of a rank is at most two of these
BUCKET_NBYTES = 256 << 20

Key = tuple[int, str]


class LiveReshard:
    """Carries out a plan, as often as wanted; every rank of the group makes one and calls it together.

    ``bucket_nbytes`` bounds staging: two buckets a rank. ``transport`` is "p2p" (messages leave from and
    arrive in tensors directly where their bytes lie in one run), "all_to_all", or "peer" for GPUs of one
    host, whose ranks read each other's memory: the fastest for steps between the same tensors (``out`` has
    to be given), with no staging, but the first step opens the memory and the tensors must stay where they
    are until :meth:`clear` has been called on every rank. Not safe to use from several threads at once.
    """

    def __init__(
        self,
        plan: LivePlan,
        *,
        group: ProcessGroup | None = None,
        bucket_nbytes: int = BUCKET_NBYTES,
        transport: str = "p2p",
    ) -> None:
        import_extra("torch", "resharding between ranks")
        if transport not in TRANSPORTS:
            raise UsageError(f"unknown transport {transport!r}", hint=f"one of {', '.join(TRANSPORTS)}")
        if bucket_nbytes < 64 << 10:
            raise UsageError(f"bucket_nbytes={bucket_nbytes} is less than 64 KiB")
        self.plan, self.group, self.bucket_nbytes = plan, group, bucket_nbytes
        self.report = LiveReport()
        self._transport = TRANSPORTS[transport](group)
        self._peer = transport == "peer"
        self._expected: tuple[dict[Key, Local], dict[Key, Local]] | None = None
        self._agreed: Offer | None = None
        self._types: dict[str, str] = {}
        self._prepared: dict[tuple[bool, bool], Prepared] = {}
        self._queues: dict[torch.device, Queues] = {}
        self._last: tuple[object, LiveStep | PeerStep] | None = None

    def run(
        self, state_dict: States, *, out: States = None, release_source: bool = False
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """This rank's tensors in the target placement; an empty dictionary for a rank with no part in it.

        ``state_dict`` has this rank's tensors in the source placement, under Megatron's names with the
        layers and experts of this rank counted from 0 (or Hugging Face's); None for a rank that gives
        nothing. With virtual pipeline stages both are lists, one dictionary for each.

        ``out``: tensors of the right shapes and types to fill instead of new ones, under whatever names
        the model has them. ``release_source`` takes each source tensor out of ``state_dict`` when it has
        been sent. A rank then needs at most a bucket besides the larger of its two sides, and another
        bucket or its largest tensor, whichever is larger: tensors are made and given up whole.

        Raises MappingError on all ranks, before anything is sent, when one of them lacks tensors or has
        others, or other shapes or element types, than the plan says.
        """
        virtual = self.plan.target.layout.virtual_pipeline_parallel_size
        result: list[dict[str, torch.Tensor]] = [{} for _ in range(virtual)]
        for chunk, name, tensor in self.stream(state_dict, out=out, release_source=release_source):
            result[chunk][name] = tensor
        return result if virtual > 1 else result[0]

    def stream(
        self, state_dict: States, *, out: States = None, release_source: bool = False
    ) -> Iterator[tuple[int, str, torch.Tensor]]:
        """As :meth:`run`, but hand out (model chunk, name, tensor) as tensors become complete, so that an
        inference engine can load a model that would not fit beside it. Every rank must exhaust it."""
        step = self._agree(state_dict, out, release=release_source)
        yield from step.run()
        self.report = step.report()

    def clear(self) -> None:
        """Forget the tensors of the last step and the staging buffers, which are kept so that the next step
        into the same tensors finds everything ready."""
        if self._last is not None:
            self._last[1].close()
        self._last = None

    def _prepare(self, *, release: bool, keep: bool) -> Prepared:
        """The schedule of this rank for the element types agreed on; kept for the steps to come."""
        import torch

        found = self._prepared.get((release, keep))
        if found is None:
            rank = self._rank()
            sizes = {name: getattr(torch, kind).itemsize for name, kind in self._types.items()}
            steps = schedule(
                self.plan,
                rank,
                sizes,
                bucket_nbytes=self.bucket_nbytes,
                direct=self._transport.direct,
                release=release,
                keep=keep,
                staging=not self._peer,
            )
            wanted: dict[Key, tuple[Local, str]] = {}
            for transfer in self.plan.transfers:
                for piece in transfer.targets:
                    if rank in piece.ranks:
                        wanted.setdefault(piece.local.key, (piece.local, self._types[transfer.name]))
            filled = frozenset(key for holder, key in self.plan.filled if holder == rank)
            found = Prepared.of(steps, self._locals()[0], wanted, filled)
            self._prepared[release, keep] = found
        return found

    def _locals(self) -> tuple[dict[Key, Local], dict[Key, Local]]:
        """What this rank gives and receives."""
        if self._expected is None:
            rank = self._rank()
            self._expected = self.plan.locals(rank, "source"), self.plan.locals(rank, "target")
        return self._expected

    def _rank(self) -> int:
        import torch.distributed as dist

        return dist.get_rank(self.group)

    def _device(self, *states: States) -> torch.device:
        """The device that the group's backend works on."""
        import torch

        device = backend_device(self.group)
        for state in states if device.type == "cuda" else ():
            for chunk in live_state.chunks(state):
                for tensor in chunk.values():
                    if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                        return tensor.device
        return device

    def _agree(self, state_dict: States, out: States, *, release: bool) -> LiveStep | PeerStep:
        """The step to run, once all ranks have theirs."""
        none = release or (out is None and not self._peer) or bool(self.plan.zeros)
        mark = None if none else live_state.fingerprint(state_dict, out)
        device = self._device(state_dict, out)
        given, filled = Held(), None
        if mark is not None and self._last is not None and self._last[0] == mark and self._agreed is not None:
            offer = self._agreed
        else:
            self.clear()
            given, filled, offer = self._offer(state_dict, out, device, release=release)
        changed = offer != self._agreed or (self._peer and self._last is None)
        offers = agree(offer, changed=changed, device=device, group=self.group)
        if offers is not None:
            types = settle_types(self.plan, offers)
            if self._last is not None and (types != self._types or self._peer):
                self.clear()  # another rank's tensors changed: all rounds may be others
                given, filled, _ = self._offer(state_dict, out, device, release=release)
            if types != self._types:
                self._types = types
                self._prepared.clear()
            self._agreed = offer
        if self._last is not None:
            return self._last[1]
        prepared = self._prepare(release=release, keep=release and out is None)
        if self._peer:
            memories = [other.memory for other in offers or () if other.memory is not None]
            peer = PeerStep(prepared, given, filled or Held(), device, self.group, memories)
            self._last = mark, peer
            return peer
        queues = self._queues.get(device)
        if queues is None:
            queues = self._queues[device] = StreamQueues(device) if device.type == "cuda" else Queues()
        step = LiveStep(prepared, given, filled, device, self._transport, queues, release=release)
        if mark is not None and step.repeatable:
            self._last = mark, step
        return step

    def _offer(
        self, state_dict: States, out: States, device: torch.device, *, release: bool
    ) -> tuple[Held, Held | None, Offer]:
        """This rank's tensors, and what it says of them."""
        offer = Offer(self.plan.digest)
        given, filled = Held(), None
        try:
            given, filled = self._bind(state_dict, out, device, release=release)
            for held, types in ((given, offer.given), (filled, offer.filled)):
                if held is not None:
                    offer.problems += held.problems
                    types.update({key: _type_name(t) for key, t in held.tensors.items()})
            if self._peer and not offer.problems:
                offer.memory = live_peer.memory(self.plan, self._rank(), given, device)
        except NemoconvError as error:
            offer.problems.append(str(error))
        except Exception as error:  # whatever it is, the other ranks must not wait for us
            offer.problems.append(f"{type(error).__name__}: {error}")
        return given, filled, offer

    def _bind(
        self, state_dict: States, out: States, device: torch.device, *, release: bool
    ) -> tuple[Held, Held | None]:
        import torch.distributed as dist

        size, rank = dist.get_world_size(self.group), self._rank()
        if size != self.plan.world_size:
            raise UsageError(f"the plan is for {self.plan.world_size} ranks, the process group has {size}")
        sources, targets = self._locals()
        if self._peer:
            if device.type != "cuda":
                raise UsageError('transport="peer" is for GPUs', hint='use transport="p2p"')
            if release or (out is None and targets):
                raise UsageError('transport="peer" needs out, and keeps its sources')
        for states, placement, what in (
            (state_dict, self.plan.source, "source"),
            (out, self.plan.target, "target"),
        ):
            live_state.check_chunks(states, placement.layout.virtual_pipeline_parallel_size, what)
        given = live_state.bind(state_dict, sources, self.plan, "source")
        live_state.check_devices(given, device)
        if release and any(not hasattr(origin, "pop") for origin, _ in given.origins.values()):
            raise UsageError("release_source needs a state dict that tensors can be taken out of")
        for piece in self.plan.zeros:
            tensor = given.tensors.get(piece.local.key) if rank in piece.ranks else None
            if tensor is not None and bool(tensor.any()):
                given.problems.append(f"{piece.local.name} should be zero, as nothing of the target holds it")
        if self._peer and not all(tensor.is_contiguous() for tensor in given.tensors.values()):
            given.problems.append('transport="peer" needs contiguous tensors')
        filled = None
        if out is not None:
            filled = live_state.bind(out, targets, self.plan, "target")
            live_state.check_devices(filled, device)
            for key, tensor in filled.tensors.items():
                if not tensor.is_contiguous():
                    filled.problems.append(f"{key[1]} of out is not contiguous")
        return given, filled


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


def _type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
