"""Between GPUs of one host that reach each other's memory: every rank reads what it needs; nothing is sent.

Sources are shared by CUDA IPC handles, once for the same tensors; a step is then one copy for each move,
strided ones too, by the copy engines and with no staging buffer at all. The all-reduce in which ranks agree
on a step comes after whatever wrote the sources; one more at the end tells that everybody has read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nemoconv.errors import NemoconvError, UnsupportedError, some
from nemoconv.resharding import live_copy
from nemoconv.resharding.cuda_peer import Copies, Region, Shared, Window, regions, share
from nemoconv.resharding.live_state import Held
from nemoconv.resharding.live_step import LiveReport, Prepared, copy_all
from nemoconv.resharding.live_transport import new_stream

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Key = tuple[int, str]


class PeerStep:
    """A step that reads the other ranks' tensors; it can run as often as the tensors stay where they are."""

    repeatable = True

    def __init__(
        self, prepared: Prepared, given: Held, out: Held, device: torch.device, group: ProcessGroup | None
    ) -> None:
        """Share and open memory; every rank does it at the same time. Raises UnsupportedError on all ranks
        where one cannot reach what it needs."""
        import torch

        self.prepared, self.given, self.out, self.device, self.group = prepared, given, out, device, group
        self._flat = {key: live_copy.as_bytes(tensor) for key, tensor in given.tensors.items()}
        into = {key: live_copy.as_bytes(tensor) for key, tensor in out.tensors.items()}
        self._window = Window()
        with torch.cuda.device(device):
            self._reads = self._open(into)
        self._local = [
            live_copy.local(move, self._flat[move.source.key], into[move.target.key])
            for round_ in prepared.schedule.rounds
            for move in round_.local
        ]
        self._streams = new_stream(device), new_stream(device)
        self._done = torch.zeros(1, device=device)

    def _open(self, into: Mapping[Key, torch.Tensor]) -> Copies:
        """What to copy from the other ranks' memory."""
        import torch.distributed as dist

        rounds = self.prepared.schedule.rounds
        sent = {move.source.key for r in rounds for message in r.sends for move in message.moves}
        handles: dict[Key, Shared] = {}
        problem = ""
        try:
            handles = {key: share(self._flat[key]) for key in sent}
        except NemoconvError as error:
            problem = str(error)
        said: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(said, (socket.gethostname(), handles), group=self.group)
        found: list[Region] = []
        try:
            for message in (message for r in rounds for message in r.receives):
                host, shared = said[message.peer]
                if host != socket.gethostname():
                    raise UnsupportedError(f"rank {message.peer} is on another host")
                (move,) = message.moves
                if move.source.key not in shared:
                    break  # the other rank says why
                source = self._window.address(shared[move.source.key]) + move.source_offset
                target = into[move.target.key].data_ptr() + move.target_offset
                found += regions(target, source, move.axes, move.itemsize)
        except NemoconvError as error:
            problem = problem or str(error)
        problems: list[Any] = [None] * len(said)
        dist.all_gather_object(problems, problem, group=self.group)
        if any(problems):
            what = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
            raise UnsupportedError(some(what), hint='use transport="p2p"')
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
