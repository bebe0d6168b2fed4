"""Copies between GPUs as rows: the same bytes as a strided copy; and the real thing where two GPUs are."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from nemoconv.errors import UnsupportedError
from nemoconv.resharding.cuda_peer import regions
from nemoconv.resharding.strided import loops

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "live.py"


def _gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


@pytest.mark.parametrize(
    ("whole", "start", "shape"),
    [
        ((6, 64), (0, 0), (6, 64)),  # one run
        ((6, 128), (1, 64), (4, 64)),  # rows of a wider matrix
        ((3, 5, 128), (1, 1, 32), (2, 3, 96)),  # rows of several matrices
        ((2, 3, 4, 64), (0, 1, 1, 0), (2, 2, 2, 64)),
    ],
)
def test_regions_cover_a_strided_copy(
    whole: tuple[int, ...], start: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Carried out with memmove, which is what the copy engines do with rows."""
    source = numpy.random.default_rng(0).integers(0, 1 << 16, whole, dtype="u2")
    target = numpy.zeros(shape, "u2")
    index = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    axes = loops(shape, source.strides, target.strides)
    for region in regions(target.ctypes.data, source[index].ctypes.data, axes, 2):
        for row in range(region.height):
            ctypes.memmove(
                region.target + row * region.target_pitch,
                region.source + row * region.source_pitch,
                region.width,
            )
    assert (target == source[index]).all()


def test_rows_that_are_too_short() -> None:
    axes = loops((64, 16), (64, 2), (32, 2))
    with pytest.raises(UnsupportedError, match="runs of 32 bytes"):
        regions(0, 0, axes, 2)


@pytest.mark.skipif(_gpus() < 2, reason="needs two CUDA devices")
def test_between_two_gpus(tmp_path: Path) -> None:
    """NCCL and direct reading, there and back: every bit arrives."""
    report = tmp_path / "report.json"
    arguments = ["--layers", "2", "--steps", "1", "--json", str(report)]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(BENCHMARK)]
    subprocess.run([*run, *arguments], check=True, timeout=200)
    found = {key: value for key, value in json.loads(report.read_text()).items() if isinstance(value, dict)}
    assert len(found) == 2
    assert all(row["bit-equal"] for row in found.values())
