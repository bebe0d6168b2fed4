"""Another process's memory on a GPU of the same host, and copies out of it by the copy engines.

A thin layer over a few functions of the CUDA driver, whose library every CUDA program has loaded:
importing NVIDIA's ``cuda.bindings`` for them takes three times as long as all else of a first step. Not
torch's own copies either: between devices it runs those as kernels on the other device, where they wait
for turns with the kernels of the process that owns it. Names and layouts are those of cuda.h (CUDA 12).

The calls need a current CUDA context in the thread, which any work of torch on the device makes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UnsupportedError, UsageError
from ..tensors.strided import Loop, positions

if TYPE_CHECKING:
    import torch

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
