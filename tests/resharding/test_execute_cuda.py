"""The executor on a GPU writes, byte for byte, what the host's writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import UsageError
from nemoconv.resharding import devices

needs_cuda = pytest.mark.cuda
BIG = {**tiny.CONFIG, "hidden_size": 64, "intermediate_size": 4096, "vocab_size": 5000}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def numbers(dtype: str, *, nan: bool) -> dict[str, numpy.ndarray]:
    """Random bits, with or without NaNs, that every cast must round, overflow or keep alike."""
    arrays = {}
    for seed, (name, shape) in enumerate(tiny.shapes(BIG).items()):
        bits = tiny.bits(shape, dtype, seed)
        if not nan:
            exponent = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[dtype]
            bits = numpy.where(bits & exponent == exponent, bits & ~numpy.array(exponent, bits.dtype), bits)
        arrays[name] = bits
    return arrays


@needs_cuda
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("target", [None, "float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
def test_both_devices_write_the_same_bytes(
    tmp_path: Path, source: str, target: str | None, tp: int, nan: bool
) -> None:
    tiny.write(tmp_path / "hf", BIG, dtype=source, arrays=numbers(source, nan=nan), torch_dtype=source)
    notes = {}
    for device in ("cpu", "cuda"):
        report = convert(
            tmp_path / "hf",
            tmp_path / device,
            to="nemo2",
            tensor_parallel_size=tp,
            dtype=target,
            device=device,
        )
        notes[device] = sorted(report.notes)
    assert files(tmp_path / "cpu") == files(tmp_path / "cuda")
    assert notes["cpu"] == notes["cuda"]


@needs_cuda
def test_the_device_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would compare the host with itself."""
    from nemoconv.resharding import execute_cuda

    crossed: list[str] = []
    real = execute_cuda.CudaWorker._cross

    def cross(worker: Any, job: Any, *box: Any) -> Any:
        result = real(worker, job, *box)
        crossed.append("device" if result is not None else "host")
        return result

    monkeypatch.setattr(execute_cuda.CudaWorker, "_cross", cross)
    tiny.write(
        tmp_path / "hf", BIG, dtype="float32", arrays=numbers("float32", nan=False), torch_dtype="float32"
    )
    convert(tmp_path / "hf", tmp_path / "out", to="nemo2", dtype="bfloat16", device="cuda")
    assert crossed.count("device") > 10
    assert "host" not in crossed


@needs_cuda
def test_resharding_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemoconv.resharding import execute_cuda

    crossed: list[bool] = []
    real = execute_cuda.CudaWorker._cross

    def cross(worker: Any, *box: Any) -> Any:
        crossed.append(True)
        return real(worker, *box)

    monkeypatch.setattr(execute_cuda.CudaWorker, "_cross", cross)
    arrays = numbers("bfloat16", nan=True)
    tiny.write(tmp_path / "hf", BIG, dtype="bfloat16", arrays=arrays, torch_dtype="bfloat16")
    convert(tmp_path / "hf", tmp_path / "one", to="nemo2")
    for device in ("cpu", "cuda"):
        reshard(tmp_path / "one", tmp_path / device, tensor_parallel_size=2, device=device)
    assert files(tmp_path / "cpu") == files(tmp_path / "cuda")
    assert crossed


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "hf")
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        convert(tmp_path / "hf", tmp_path / "out", to="nemo2", device="tpu")
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        reshard(tmp_path / "hf", tmp_path / "out", tensor_parallel_size=2, device="tpu")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="--device cuda needs the package torch"):
        devices.check_device("cuda")
    assert not (tmp_path / "out").exists()
