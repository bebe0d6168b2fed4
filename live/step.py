"""One run of a schedule: packing, messages and unpacking of neighbouring rounds overlap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import copy as live_copy
from .moves import Message, Round, Schedule
from .placement import Local
from .state import Held
from .transport import Queues, Transport

if TYPE_CHECKING:
    import torch

Key = tuple[int, str]


@dataclass(slots=True)
class LiveReport:
    """What the last step of a rank did, in bytes. ``peak_nbytes``: the most that source tensors still
    held, target tensors and staging buffers took at once."""

    sent_nbytes: int = 0
    received_nbytes: int = 0
    copied_nbytes: int = 0
    rounds: int = 0
    peak_nbytes: int = 0


@dataclass(slots=True)
class Prepared:
    """A schedule, with what every step of it needs to know."""

    schedule: Schedule
    #: what this rank receives, with element types
    wanted: dict[Key, tuple[Local, str]]
    #: those of them that also have elements nobody sends
    filled: frozenset[Key]
    #: source tensors by the round that uses them last
    last_use: dict[int, list[Key]]
    #: target tensors by the round that completes them; -1: no round touches them
    complete: dict[int, list[Key]]

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        given: Mapping[Key, Local],
        wanted: dict[Key, tuple[Local, str]],
        filled: frozenset[Key],
    ) -> Prepared:
        uses: dict[Key, int] = dict.fromkeys(given, 0)
        fills: dict[Key, int] = dict.fromkeys(wanted, -1)
        for number, round_ in enumerate(schedule.rounds):
            for message in round_.sends:
                uses.update((move.source.key, number) for move in message.moves)
            for message in round_.receives:
                fills.update((move.target.key, number) for move in message.moves)
            for move in round_.local:
                uses[move.source.key] = fills[move.target.key] = number
        last_use: dict[int, list[Key]] = {}
        complete: dict[int, list[Key]] = {}
        for key, number in uses.items():
            last_use.setdefault(number, []).append(key)
        for key, number in fills.items():
            complete.setdefault(number, []).append(key)
        return cls(schedule, wanted, filled, last_use, complete)


Pairs = list[tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(slots=True)
class BoundRound:
    """A round's copies as (target, source) views, and what its transport is to exchange."""

    packs: Pairs
    request: Any
    locals: Pairs
    unpacks: Pairs


class LiveStep:
    """One run. ``out``: the tensors to fill, None for new ones. ``release``: forget sources when used.

    A step that fills given tensors and releases nothing can run again, with the views that it has made.
    """

    def __init__(
        self,
        prepared: Prepared,
        given: Held,
        out: Held | None,
        device: torch.device,
        transport: Transport,
        queues: Queues,
        *,
        release: bool,
    ) -> None:
        self.prepared, self.given, self.out = prepared, given, out
        self.device, self.transport, self.queues, self.release = device, transport, queues, release
        self.targets: dict[Key, torch.Tensor] = {}
        self.flat: dict[tuple[str, Key], torch.Tensor] = {}
        self.bound: list[BoundRound] = []
        self.buffers: dict[str, list[torch.Tensor]] = {}
        held = [given, out] if out is not None else [given]
        self.nbytes = sum(tensor.nbytes for side in held for tensor in side.tensors.values())
        self.peak = self.nbytes

    @property
    def repeatable(self) -> bool:
        """Whether it may run again; a copy of a source that lies in no run would be out of date."""
        plain = all(tensor.is_contiguous() for tensor in self.given.tensors.values())
        return self.out is not None and not self.release and plain

    def run(self) -> Iterator[tuple[int, str, torch.Tensor]]:
        """(model chunk, name, tensor) of the targets, each when it is complete."""
        import torch

        guard = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with guard, torch.no_grad():
            yield from self._run()

    def _run(self) -> Iterator[tuple[int, str, torch.Tensor]]:
        count, queues, complete = len(self.prepared.schedule.rounds), self.queues, self.prepared.complete
        kept = {target.key: source.key for source, target in self.prepared.schedule.kept}
        again = bool(self.bound)
        if again:
            for key in self.prepared.filled:
                self.targets[key].zero_()
        else:
            self._make_buffers()
        for target, source in kept.items():
            self.targets[target] = self.given.tensors[source].detach()
        if not self.release:
            for key in self.prepared.wanted:
                self._target(key)
        started: list[Any] = [self._start(0, [])] if count else []
        unpacked: list[Any] = []
        for number in range(count):
            if number + 1 < count:
                started.append(self._start(number + 1, unpacked))
            with queues.sending():
                self.transport.finish(started[number])
                arrived = queues.mark("send")
            started[number] = None
            with queues.copying():
                queues.wait("copy", arrived)
                copy_all(self.bound[number].unpacks)
                unpacked.append(queues.mark("copy"))
            queues.wait("caller", unpacked[number])
            if self.release:
                self.bound[number] = BoundRound([], None, [], [])
                self._forget(self.prepared.last_use.get(number, ()), kept.values())
            for key in complete.get(number, ()):
                tensor = self.targets[key]
                if self.out is None:
                    self.flat.pop(("target", key), None)
                    self.targets.pop(key)
                yield *key, tensor
        queues.join()
        if not self.repeatable:
            self.bound, self.buffers = [], {}
            self.flat.clear()
        for key in complete.get(-1, ()):
            yield *key, self._target(key)

    def close(self) -> None:
        """Nothing to give back: memory goes with the step."""

    def report(self) -> LiveReport:
        done = self.prepared.schedule
        return LiveReport(
            done.sent_nbytes, done.received_nbytes, done.local_nbytes, len(done.rounds), self.peak
        )

    def _forget(self, keys: Iterable[Key], kept: Collection[Key]) -> None:
        for key in keys:
            self.flat.pop(("source", key), None)
            if key not in kept:
                self._hold(-self.given.tensors[key].nbytes)
            self.given.drop(key)

    def _hold(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self.peak = max(self.peak, self.nbytes)

    def _make_buffers(self) -> None:
        """Two staging buffers each way, for the even and the odd rounds."""
        import torch

        rounds = self.prepared.schedule.rounds
        for kind in ("send", "receive"):
            sizes = [getattr(round_, f"{kind}_nbytes") for round_ in rounds]
            most = [max(sizes[parity::2], default=0) for parity in (0, 1)]
            self._hold(sum(most))
            self.buffers[kind] = [torch.empty(n, dtype=torch.uint8, device=self.device) for n in most]

    def _start(self, number: int, unpacked: Sequence[Any]) -> Any:
        """Pack and send round ``number``; its buffers are free once round ``number - 2`` is unpacked."""
        queues = self.queues
        if len(self.bound) == number:
            self._touch(self.prepared.schedule.rounds[number])
            self.bound.append(self._bind(number))
        bound = self.bound[number]
        queues.follow()
        with queues.copying():
            copy_all(bound.packs)
            packed = queues.mark("copy")
        with queues.sending():
            queues.wait("send", packed)
            if number >= 2:
                queues.wait("send", unpacked[number - 2])
            work = self.transport.start(bound.request)
        with queues.copying():
            copy_all(bound.locals)
        return work

    def _bind(self, number: int) -> BoundRound:
        round_, packs, unpacks = self.prepared.schedule.rounds[number], Pairs(), Pairs()
        out, into = self.buffers["send"][number % 2], self.buffers["receive"][number % 2]
        sends = []
        for message, at in zip(round_.sends, self.transport.places(round_.sends), strict=True):
            flats = [self._flat("source", move.source.key) for move in message.moves]
            sends.append(_bytes(message, at, out, flats[0], message.moves[0].source_offset))
            packs += [] if message.direct else live_copy.packs(message, flats, out, at)
        receives = []
        for message, at in zip(round_.receives, self.transport.places(round_.receives), strict=True):
            flats = [self._flat("target", move.target.key) for move in message.moves]
            receives.append(_bytes(message, at, into, flats[0], message.moves[0].target_offset))
            unpacks += [] if message.direct else live_copy.unpacks(message, flats, into, at)
        here = [
            live_copy.local(
                move, self._flat("source", move.source.key), self._flat("target", move.target.key)
            )
            for move in round_.local
        ]
        return BoundRound(packs, self.transport.bind(sends, receives, round_, (out, into)), here, unpacks)

    def _touch(self, round_: Round) -> None:
        """Make the target tensors of a round, before its queues begin."""
        for message in round_.receives:
            for move in message.moves:
                self._target(move.target.key)
        for move in round_.local:
            self._target(move.target.key)

    def _target(self, key: Key) -> torch.Tensor:
        import torch

        tensor = self.targets.get(key)
        if tensor is None:
            local, kind = self.prepared.wanted[key]
            if self.out is not None:
                tensor = self.out.tensors[key].detach()
            else:
                tensor = torch.empty(local.shape, dtype=getattr(torch, kind), device=self.device)
                self._hold(tensor.nbytes)
            if key in self.prepared.filled:
                tensor.zero_()
            self.targets[key] = tensor
        return tensor

    def _flat(self, side: str, key: Key) -> torch.Tensor:
        """The bytes of a tensor."""
        found = self.flat.get((side, key))
        if found is None:
            tensor = self.given.tensors[key] if side == "source" else self._target(key)
            found = self.flat[side, key] = live_copy.as_bytes(tensor.contiguous())
        return found


def copy_all(pairs: Pairs) -> None:
    """Copy each source view into its target view, in the present stream."""
    for target, source in pairs:
        target.copy_(source)


def _bytes(
    message: Message, at: int, buffer: torch.Tensor, tensor: torch.Tensor, offset: int
) -> torch.Tensor:
    """What a message travels from or into: the staging buffer, or the tensor itself."""
    if message.direct:
        return tensor[offset : offset + message.nbytes]
    return buffer[at : at + message.nbytes]
