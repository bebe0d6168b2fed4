"""Another process's memory on a GPU of the same host, and copies out of it by the copy engines.

A thin layer over the CUDA runtime as NVIDIA's ``cuda.bindings`` offers it, which torch for CUDA brings
along: torch itself runs copies between devices as kernels on the other device, where they wait for turns
with the kernels of the process that owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from nemoconv.errors import UnsupportedError, UsageError
from nemoconv.resharding.strided import Loop, positions

if TYPE_CHECKING:
    import torch

#: shorter rows than this take the copy engines longer than staging and sending them
SMALLEST_RUN = 64


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


def _bindings() -> tuple[Any, Any]:
    try:
        driver, runtime = (import_module(f"cuda.bindings.{name}") for name in ("driver", "runtime"))
    except ImportError:
        raise UsageError(
            'transport="peer" needs cuda-bindings', hint='pip install cuda-bindings, or use transport="p2p"'
        ) from None
    return driver, runtime


def _checked(result: tuple[Any, ...], what: str) -> Any:
    """The value of a call of the CUDA API. Raises UnsupportedError."""
    if int(result[0]):
        raise UnsupportedError(f"{what}: {result[0].name}")
    return result[1] if len(result) > 1 else None


def share(tensor: torch.Tensor) -> Shared:
    """How another process finds the bytes of ``tensor``. Raises UnsupportedError for memory that CUDA IPC
    cannot share (torch's expandable segments)."""
    driver, runtime = _bindings()
    found = driver.cuMemGetAddressRange(tensor.data_ptr())
    base = int(_checked(found, "its memory cannot be found"))
    handle = _checked(runtime.cudaIpcGetMemHandle(base), "its memory cannot be shared")
    return Shared(bytes(handle.reserved), tensor.data_ptr() - base)


class Window:
    """Allocations of other processes, each opened once on the present device."""

    def __init__(self) -> None:
        self._bases: dict[bytes, int] = {}

    def address(self, shared: Shared) -> int:
        """Where those bytes are for this process. Raises UnsupportedError."""
        _, runtime = _bindings()
        base = self._bases.get(shared.handle)
        if base is None:
            handle = runtime.cudaIpcMemHandle_t()
            handle.reserved = shared.handle
            opened = runtime.cudaIpcOpenMemHandle(handle, runtime.cudaIpcMemLazyEnablePeerAccess)
            base = self._bases[shared.handle] = int(
                _checked(opened, "another rank's memory cannot be opened")
            )
        return base + shared.offset

    def close(self) -> None:
        _, runtime = _bindings()
        for base in self._bases.values():
            runtime.cudaIpcCloseMemHandle(base)
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
    if not outer:
        return [Region(target, run, source, run, run, 1)]
    count, a, b = outer[-1]
    return [Region(target + q, b, source + p, a, run, count) for p, q in positions(outer[:-1])]


class Copies:
    """Regions to be copied, as often as asked for, on a stream of the device that reads."""

    def __init__(self, found: Sequence[Region]) -> None:
        self._regions = list(found)
        self._runtime = _bindings()[1]
        self._kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault

    def start(self, stream: int) -> None:
        copy, kind = self._runtime.cudaMemcpy2DAsync, self._kind
        for region in self._regions:
            _checked(copy(*region, kind, stream), "a copy from another GPU failed")
