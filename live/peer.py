"""Between GPUs of one host that reach each other's memory: every rank reads what it needs; nothing is sent.

Sources are shared by CUDA IPC handles, once for the same tensors, in the message in which ranks agree on a
step; the step is then one copy for each move, strided ones too, by the copy engines and with no staging
buffer at all. The all-reduce in which ranks agree comes after whatever wrote the sources; one more at the
end tells that everybody has read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import NemoconvError, UnsupportedError
from . import copy as live_copy
from .agree import Memory, agree_on_memory, agree_on_success
from .cuda_peer import Copies, PeerMemory, Region, Shared, regions, share
from .plan import LivePlan
from .state import Held
from .step import LiveReport, Prepared, copy_all
from .transport import new_stream

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Key = tuple[int, str]


def memory(plan: LivePlan, rank: int, given: Held, device: torch.device) -> Memory:
    """Where the other ranks find those of this rank's tensors that they may read."""
    import torch

    wanted: dict[Key, None] = {}
    for transfer in plan.transfers:
        for i, j, _, _ in transfer.overlaps:
            source = transfer.sources[i]
            if rank in source.ranks and not set(transfer.targets[j].ranks) <= set(source.ranks):
                wanted[source.local.key] = None
    keys = [key for key in wanted if key in given.tensors]
    try:
        with torch.cuda.device(device):
            torch.cuda.current_stream().query()  # makes the device's context this thread's
            places = share(given.tensors[key] for key in keys)
    except NemoconvError as error:
        return Memory(socket.gethostname(), {}, error.message)
    return Memory(socket.gethostname(), dict(zip(keys, map(tuple, places), strict=True)))  # type: ignore[arg-type]


class PeerStep:
    """A step that reads the other ranks' tensors; it can run as often as the tensors stay where they are."""

    repeatable = True

    def __init__(
        self,
        prepared: Prepared,
        given: Held,
        out: Held,
        device: torch.device,
        group: ProcessGroup | None,
        memories: Sequence[Memory],
    ) -> None:
        """Open the ``memories`` of all ranks; every rank does it at the same time. Raises UnsupportedError on
        all ranks where one cannot reach what it needs."""
        import torch

        agree_on_memory([found.problem for found in memories])
        self.prepared, self.given, self.out, self.device, self.group = prepared, given, out, device, group
        self._flat = {key: live_copy.as_bytes(tensor) for key, tensor in given.tensors.items()}
        into = {key: live_copy.as_bytes(tensor) for key, tensor in out.tensors.items()}
        self._window = PeerMemory()
        with torch.cuda.device(device):
            self._reads = self._open(into, memories)
        self._local = [
            live_copy.local(move, self._flat[move.source.key], into[move.target.key])
            for round_ in prepared.schedule.rounds
            for move in round_.local
        ]
        self._streams = new_stream(device), new_stream(device)
        self._done = torch.zeros(1, device=device)

    def _open(self, into: Mapping[Key, torch.Tensor], memories: Sequence[Memory]) -> Copies:
        """What to copy from the other ranks' memory."""
        found: list[Region] = []
        problem = ""
        host = socket.gethostname()
        try:
            for message in (m for round_ in self.prepared.schedule.rounds for m in round_.receives):
                theirs = memories[message.peer]
                if theirs.host != host:
                    raise UnsupportedError(f"rank {message.peer} is on another host")
                (move,) = message.moves
                source = self._window.address(Shared(*theirs.places[move.source.key])) + move.source_offset
                target = into[move.target.key].data_ptr() + move.target_offset
                found += regions(target, source, move.axes, move.itemsize)
        except NemoconvError as error:
            problem = error.message
        agree_on_success(problem, device=self.device, group=self.group)
        return Copies(found)

    def run(self) -> Iterator[tuple[int, str, torch.Tensor]]:
        """(model chunk, name, tensor) of the targets, complete in the order of the caller's stream."""
        import torch
        import torch.distributed as dist

        reading, copying = self._streams
        with torch.cuda.device(self.device), torch.no_grad():
            caller = torch.cuda.current_stream(self.device)
            for key in self.prepared.filled:
                self.out.tensors[key].zero_()
            for stream in self._streams:
                stream.wait_stream(caller)
            self._reads.start(reading.cuda_stream)
            with torch.cuda.stream(copying):
                copy_all(self._local)
            for stream in self._streams:
                caller.wait_stream(stream)
            dist.all_reduce(self._done, group=self.group)
            for key in self.prepared.wanted:
                yield *key, self.out.tensors[key].detach()

    def close(self) -> None:
        """Close the others' memory, once nothing reads it any more."""
        import torch

        torch.cuda.synchronize(self.device)
        with torch.cuda.device(self.device):
            self._window.close()

    def report(self) -> LiveReport:
        done = self.prepared.schedule
        held = sum(t.nbytes for side in (self.given, self.out) for t in side.tensors.values())
        return LiveReport(done.sent_nbytes, done.received_nbytes, done.local_nbytes, 1, held)
