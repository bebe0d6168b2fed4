"""Copies between GPUs as rows: the same bytes as a strided copy; and the real thing where two GPUs are."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from nemoconv.errors import UnsupportedError
from nemoconv.live import peer
from nemoconv.live.peer import Copies, PeerMemory, Shared, regions
from nemoconv.tensors.strided import loops

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "live.py"


@pytest.mark.parametrize(
    ("whole", "start", "shape"),
    [
        ((6, 64), (0, 0), (6, 64)),  # one run
        ((6, 128), (1, 64), (4, 64)),  # rows of a wider matrix
        ((3, 5, 128), (1, 1, 32), (2, 3, 96)),  # rows of several matrices
        ((2, 3, 4, 64), (0, 1, 1, 0), (2, 2, 2, 64)),
    ],
)
def test_copies_are_a_strided_copy(
    whole: tuple[int, ...], start: tuple[int, ...], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carried out with memmove, which is what the copy engines do with rows."""
    monkeypatch.setattr(peer, "_driver", Memory)
    source = numpy.random.default_rng(0).integers(0, 1 << 16, whole, dtype="u2")
    index = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    for pitch in (peer.MAX_PITCH, 64):  # as wide as the hardware allows, and wider
        monkeypatch.setattr(peer, "MAX_PITCH", pitch)
        target = numpy.zeros(shape, "u2")
        axes = loops(shape, source.strides, target.strides)
        found = regions(target.ctypes.data, source[index].ctypes.data, axes, 2)
        Copies(found).start(7)
        assert (target == source[index]).all()


class Memory:
    """The driver's copies, between arrays of this process."""

    def cuMemcpyAsync(self, target: int, source: int, nbytes: int, stream: int) -> int:
        assert stream == 7
        ctypes.memmove(target, source, nbytes)
        return 0

    def cuMemcpy2DAsync_v2(self, rows: Any, stream: int) -> int:
        assert stream == 7
        assert max(rows.srcPitch, rows.dstPitch) <= peer.MAX_PITCH
        assert (rows.srcMemoryType, rows.dstMemoryType) == (4, 4)
        for row in range(rows.Height):
            target, source = rows.dstDevice + row * rows.dstPitch, rows.srcDevice + row * rows.srcPitch
            ctypes.memmove(target, source, rows.WidthInBytes)
        return 0


def test_an_allocation_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        opened: list[bytes] = []
        closed: list[int] = []

        def cuIpcOpenMemHandle_v2(self, address: Any, handle: Any, flags: int) -> int:
            self.opened.append(bytes(handle.reserved))
            address.value = 1000 * len(self.opened)
            return 0

        def cuIpcCloseMemHandle(self, address: int) -> int:
            self.closed.append(address)
            return 0

    driver = Driver()
    monkeypatch.setattr(peer, "_driver", lambda: driver)
    window = PeerMemory()
    a, b = b"a" * 64, b"b" * 64
    assert [window.address(Shared(h, n)) for h, n in ((a, 0), (b, 5), (a, 7))] == [1000, 2005, 1007]
    assert driver.opened == [a, b]
    window.close()
    window.close()
    assert driver.closed == [1000, 2000]


def test_what_the_driver_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuIpcOpenMemHandle_v2(self, address: Any, handle: Any, flags: int) -> int:
            return 201

        def cuGetErrorName(self, code: int, name: Any) -> int:
            name.value = b"CUDA_ERROR_INVALID_CONTEXT"
            return 0

    monkeypatch.setattr(peer, "_driver", Driver)
    with pytest.raises(UnsupportedError, match=r"cannot be opened: CUDA_ERROR_INVALID_CONTEXT \(201\)"):
        PeerMemory().address(Shared(bytes(64), 0))


def test_rows_that_are_too_short() -> None:
    axes = loops((64, 16), (64, 2), (32, 2))
    with pytest.raises(UnsupportedError, match="runs of 32 bytes"):
        regions(0, 0, axes, 2)


@pytest.mark.cuda(devices=2)
def test_between_two_gpus(tmp_path: Path) -> None:
    """NCCL and direct reading, there and back: every bit arrives."""
    report = tmp_path / "report.json"
    arguments = ["--layers", "2", "--steps", "1", "--json", str(report)]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(BENCHMARK)]
    subprocess.run([*run, *arguments], check=True, timeout=200)
    found = {key: value for key, value in json.loads(report.read_text()).items() if isinstance(value, dict)}
    assert len(found) == 3
    assert all(row["bit-equal"] for row in found.values())
