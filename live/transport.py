"""How the messages of a round travel, and the streams on which copies and messages overlap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .moves import Message, Round, aligned

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


class Queues:
    """Where there is one queue, the CPU: everything happens in order."""

    def copying(self) -> AbstractContextManager[object]:
        """Copies go here."""
        return nullcontext()

    def sending(self) -> AbstractContextManager[object]:
        """Messages go here."""
        return nullcontext()

    def follow(self) -> None:
        """Both queues begin after what the caller has asked for so far."""

    def mark(self, queue: str) -> Any:
        """The present end of a queue, "copy" or "send"."""
        return None

    def wait(self, queue: str, mark: Any) -> None:
        """What is asked for next, of a queue or of the caller ("caller"), begins after the mark."""

    def join(self) -> None:
        """The caller goes on after both queues."""


def new_stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


class StreamQueues(Queues):
    """Two CUDA streams beside the caller's own, so that copies hide behind messages."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {"copy": new_stream(device), "send": new_stream(device)}

    def _stream(self, queue: str) -> torch.cuda.Stream:
        import torch

        return self._streams[queue] if queue in self._streams else torch.cuda.current_stream(self._device)

    @contextmanager
    def _on(self, queue: str) -> Iterator[None]:
        import torch

        with torch.cuda.stream(self._streams[queue]):
            yield

    def copying(self) -> AbstractContextManager[object]:
        return self._on("copy")

    def sending(self) -> AbstractContextManager[object]:
        return self._on("send")

    def follow(self) -> None:
        for stream in self._streams.values():
            stream.wait_stream(self._stream("caller"))

    def mark(self, queue: str) -> torch.cuda.Event:
        event: torch.cuda.Event = self._stream(queue).record_event()
        return event

    def wait(self, queue: str, mark: Any) -> None:
        if mark is not None:
            self._stream(queue).wait_event(mark)

    def join(self) -> None:
        for stream in self._streams.values():
            self._stream("caller").wait_stream(stream)


class Transport(ABC):
    """A way for the messages of a round to travel."""

    #: whether messages may leave from and arrive in tensors themselves
    direct: bool

    def __init__(self, group: ProcessGroup | None) -> None:
        self._group = group

    @abstractmethod
    def places(self, messages: list[Message]) -> list[int]:
        """Where in a staging buffer each message lies; direct ones get no place."""

    @abstractmethod
    def bind(
        self, sends: list[torch.Tensor], receives: list[torch.Tensor], round_: Round, buffers: Any
    ) -> Any:
        """A request to exchange these bytes, one tensor for each message; it can be started many times."""

    @abstractmethod
    def start(self, request: Any) -> Any:
        """Begin to exchange what was bound."""

    @abstractmethod
    def finish(self, started: Any) -> None:
        """Wait for them: the CPU with gloo, the present stream with NCCL."""


class PointToPoint(Transport):
    """One send and one receive for each message, all of a round at once."""

    direct = True

    def places(self, messages: list[Message]) -> list[int]:
        at, found = 0, []
        for message in messages:
            found.append(at)
            at += 0 if message.direct else aligned(message.nbytes)
        return found

    def bind(
        self, sends: list[torch.Tensor], receives: list[torch.Tensor], round_: Round, buffers: Any
    ) -> Any:
        import torch.distributed as dist

        group = self._group if self._group is not None else dist.group.WORLD
        assert group is not None
        ops = [
            dist.P2POp(dist.isend, view, dist.get_global_rank(group, message.peer), group)
            for view, message in zip(sends, round_.sends, strict=True)
        ]
        ops += [
            dist.P2POp(dist.irecv, view, dist.get_global_rank(group, message.peer), group)
            for view, message in zip(receives, round_.receives, strict=True)
        ]
        return ops

    def start(self, request: Any) -> Any:
        import torch.distributed as dist

        return dist.batch_isend_irecv(request) if request else []

    def finish(self, started: Any) -> None:
        for work in started:
            work.wait()


class AllToAll(Transport):
    """One all-to-all of staging buffers for each round, in which every rank takes part."""

    direct = False

    def places(self, messages: list[Message]) -> list[int]:
        at, found = 0, [0] * len(messages)
        for number in sorted(range(len(messages)), key=lambda n: messages[n].peer):
            found[number] = at
            at += aligned(messages[number].nbytes)
        return found

    def bind(
        self, sends: list[torch.Tensor], receives: list[torch.Tensor], round_: Round, buffers: Any
    ) -> Any:
        import torch.distributed as dist

        size = dist.get_world_size(self._group)
        sent, received = [0] * size, [0] * size
        for message in round_.sends:
            sent[message.peer] += aligned(message.nbytes)
        for message in round_.receives:
            received[message.peer] += aligned(message.nbytes)
        out, into = buffers
        return into[: sum(received)], out[: sum(sent)], received, sent

    def start(self, request: Any) -> Any:
        import torch.distributed as dist

        into, out, received, sent = request
        return dist.all_to_all_single(into, out, received, sent, group=self._group, async_op=True)

    def finish(self, started: Any) -> None:
        started.wait()


#: of "peer", see :mod:`nemoconv.live.peer`
TRANSPORTS: dict[str, type[Transport]] = {"p2p": PointToPoint, "all_to_all": AllToAll, "peer": PointToPoint}


def backend_device(group: ProcessGroup | None) -> torch.device:
    """The device that the backend of a group works on."""
    import torch
    import torch.distributed as dist

    if "nccl" in dist.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
