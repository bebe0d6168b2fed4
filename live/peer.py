"""Between GPUs of one host that reach each other's memory: every rank reads what it needs; nothing is sent.

Sources are shared by CUDA IPC handles, once for the same tensors, in the message in which ranks agree on a
step; the step is then one copy for each move, strided ones too, by the copy engines and with no staging
buffer at all. The all-reduce in which ranks agree comes after whatever wrote the sources; one more at the
end tells that everybody has read.

The copies are a thin layer over a few functions of the CUDA driver, whose library every CUDA program has
loaded: importing NVIDIA's ``cuda.bindings`` for them takes three times as long as all else of a first step.
Not torch's own copies either: between devices it runs those as kernels on the other device, where they wait
for turns with the kernels of the process that owns it. Names and layouts are those of cuda.h (CUDA 12). The
calls need a current CUDA context in the thread, which any work of torch on the device makes.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import NemoconvError, UnsupportedError, UsageError
from ..tensors.strided import Loop, positions
from . import copy as live_copy
from .agree import Memory, agree_on_memory, agree_on_success
from .plan import LivePlan
from .state import Held
from .step import LiveReport, Prepared, copy_all
from .transport import new_stream

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

#: shorter rows than this take the copy engines longer than staging and sending them
SMALLEST_RUN = 64
#: bytes between rows that a copy of rows may have (CU_DEVICE_ATTRIBUTE_MAX_PITCH of every GPU so far)
MAX_PITCH = (1 << 31) - 1

_LIBRARY = "libcuda.so.1"
_LAZY_ENABLE_PEER_ACCESS = 1
_UNIFIED = 4  # CU_MEMORYTYPE_UNIFIED: the address says where it is
_HANDLE_NBYTES = 64


class _Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("reserved", ctypes.c_ubyte * _HANDLE_NBYTES),)


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("srcXInBytes", ctypes.c_size_t),
        ("srcY", ctypes.c_size_t),
        ("srcMemoryType", ctypes.c_uint),
        ("srcHost", ctypes.c_void_p),
        ("srcDevice", ctypes.c_uint64),
        ("srcArray", ctypes.c_void_p),
        ("srcPitch", ctypes.c_size_t),
        ("dstXInBytes", ctypes.c_size_t),
        ("dstY", ctypes.c_size_t),
        ("dstMemoryType", ctypes.c_uint),
        ("dstHost", ctypes.c_void_p),
        ("dstDevice", ctypes.c_uint64),
        ("dstArray", ctypes.c_void_p),
        ("dstPitch", ctypes.c_size_t),
        ("WidthInBytes", ctypes.c_size_t),
        ("Height", ctypes.c_size_t),
    )


class Shared(NamedTuple):
    """Where bytes lie for others: the handle of an allocation, and the offset in it."""

    handle: bytes
    offset: int


class Region(NamedTuple):
    """Rows to be copied: addresses, bytes between rows, bytes of a row, and how many."""

    target: int
    target_pitch: int
    source: int
    source_pitch: int
    width: int
    height: int


@cache
def _driver() -> Any:
    """The driver's library, with the types of what is called. Raises UsageError where there is none."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise UsageError(f'transport="peer" needs {_LIBRARY}', hint='use transport="p2p"') from None
    pointer, size, stream = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
    to = ctypes.POINTER
    for name, types in {
        "cuGetErrorName": (ctypes.c_int, to(ctypes.c_char_p)),
        "cuMemGetAddressRange_v2": (to(pointer), to(size), pointer),
        "cuIpcGetMemHandle": (to(_Handle), pointer),
        "cuIpcOpenMemHandle_v2": (to(pointer), _Handle, ctypes.c_uint),
        "cuIpcCloseMemHandle": (pointer,),
        "cuMemcpyAsync": (pointer, pointer, size, stream),
        "cuMemcpy2DAsync_v2": (to(_Copy2D), stream),
    }.items():
        getattr(driver, name).argtypes = types
    return driver


def _check(result: int, what: str) -> None:
    """Raise UnsupportedError unless a call of the driver succeeded."""
    if result:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(result, name)
        raise UnsupportedError(f"{what}: {(name.value or b'error').decode()} ({result})")


def share(tensors: Iterable[torch.Tensor]) -> list[Shared]:
    """How another process finds the bytes of each tensor. Raises UnsupportedError for memory that CUDA IPC
    cannot share (torch's expandable segments)."""
    driver, handles = _driver(), dict[int, bytes]()
    found = []
    for tensor in tensors:
        base, size, address = ctypes.c_uint64(), ctypes.c_size_t(), tensor.data_ptr()
        _check(driver.cuMemGetAddressRange_v2(base, size, address), "its memory cannot be found")
        if base.value not in handles:
            handle = _Handle()
            _check(driver.cuIpcGetMemHandle(handle, base.value), "its memory cannot be shared")
            handles[base.value] = bytes(handle.reserved)
        found.append(Shared(handles[base.value], address - base.value))
    return found


class PeerMemory:
    """Allocations of other processes, each opened once on the present device."""

    def __init__(self) -> None:
        self._bases: dict[bytes, int] = {}

    def address(self, shared: Shared) -> int:
        """Where those bytes are for this process. Raises UnsupportedError."""
        base = self._bases.get(shared.handle)
        if base is None:
            opened, handle = ctypes.c_uint64(), _Handle.from_buffer_copy(shared.handle)
            result = _driver().cuIpcOpenMemHandle_v2(opened, handle, _LAZY_ENABLE_PEER_ACCESS)
            _check(result, "another rank's memory cannot be opened")
            base = self._bases[shared.handle] = opened.value
        return base + shared.offset

    def close(self) -> None:
        for base in self._bases.values():
            _driver().cuIpcCloseMemHandle(base)
        self._bases.clear()


def regions(target: int, source: int, axes: Sequence[Loop], itemsize: int) -> list[Region]:
    """A strided copy between two addresses as rows. Raises UnsupportedError for rows that are too short.

    Loops are (count, byte stride in the source, in the target).
    """
    outer, run = list(axes), itemsize
    if outer and outer[-1][1:] == (itemsize, itemsize):
        run = outer.pop()[0] * itemsize
    if outer and run < SMALLEST_RUN:
        raise UnsupportedError(f"a copy in runs of {run} bytes", hint='use transport="p2p"')
    if not outer or max(outer[-1][1:]) > MAX_PITCH:
        return [Region(target + q, run, source + p, run, run, 1) for p, q in positions(outer)]
    count, a, b = outer[-1]
    return [Region(target + q, b, source + p, a, run, count) for p, q in positions(outer[:-1])]


class Copies:
    """Regions to be copied, as often as asked for, on a stream of the device that reads."""

    def __init__(self, found: Iterable[Region]) -> None:
        self._runs: list[tuple[int, int, int]] = []
        self._rows: list[_Copy2D] = []
        for region in found:
            if region.height == 1:
                self._runs.append((region.target, region.source, region.width))
            else:
                self._rows.append(_rows(region))

    def start(self, stream: int) -> None:
        """Ask for all copies. Raises UnsupportedError."""
        driver, what = _driver(), "a copy from another GPU failed"
        for rows in self._rows:
            _check(driver.cuMemcpy2DAsync_v2(rows, stream), what)
        for target, source, nbytes in self._runs:
            _check(driver.cuMemcpyAsync(target, source, nbytes, stream), what)


def _rows(region: Region) -> _Copy2D:
    return _Copy2D(
        srcMemoryType=_UNIFIED,
        srcDevice=region.source,
        srcPitch=region.source_pitch,
        dstMemoryType=_UNIFIED,
        dstDevice=region.target,
        dstPitch=region.target_pitch,
        WidthInBytes=region.width,
        Height=region.height,
    )


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
