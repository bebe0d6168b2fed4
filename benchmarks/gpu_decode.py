"""For gpu.py: dequantisation in memory, and a quantised checkpoint to convert."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy
import torch

from nemoconv.formats.safetensors import emit_header
from nemoconv.resharding.execute_cuda import DeviceDecoder
from nemoconv.tensors.dtypes import BY_NAME

#: codes in all, and codes that are decoded at once
_WHOLE, _CHUNK = 1 << 30, 32 << 20
_COLUMNS, _BLOCK = 8192, 128


def decoding() -> dict[str, float]:
    """GB/s of codes, from pinned memory to bfloat16 on the device with a look for NaNs.

    Chunks take turns on two streams: while one is decoded, the codes of the next cross the bus.
    """
    decoder = DeviceDecoder()
    bfloat16 = torch.bfloat16
    codes = torch.randint(0, 127, (_WHOLE,), dtype=torch.uint8).pin_memory()
    rows = _CHUNK // _COLUMNS
    scales = torch.rand(_WHOLE // _CHUNK, rows // _BLOCK, _COLUMNS // _BLOCK).pin_memory()
    exponents = torch.randint(100, 150, (_WHOLE // 16,), dtype=torch.uint8).pin_memory()
    row_of, column_of = (
        torch.arange(count, dtype=torch.int32, device="cuda") // _BLOCK for count in (rows, _COLUMNS)
    )

    def fp8(number: int) -> torch.Tensor:
        there = codes[number * _CHUNK :][:_CHUNK].to("cuda", non_blocking=True)
        given = scales[number].to("cuda", non_blocking=True)
        return decoder.fp8(there.view(rows, _COLUMNS), "float8_e4m3fn", given, row_of, column_of, bfloat16)

    def mxfp4(number: int) -> torch.Tensor:
        there = codes[number * _CHUNK :][:_CHUNK].to("cuda", non_blocking=True)
        groups = _CHUNK // 16
        given = exponents[number * groups :][:groups].to("cuda", non_blocking=True)
        return decoder.mxfp4(there.view(groups, 16), given, bfloat16)

    return {f"decoding {kind.__name__}": _speed(kind) for kind in (fp8, mxfp4)}


def _speed(decode: Callable[[int], torch.Tensor]) -> float:
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(7):
        nans = []
        started = time.perf_counter()
        for number in range(_WHOLE // _CHUNK):
            with torch.cuda.stream(streams[number % 2]):
                nans.append(decode(number).isnan().any())
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
        assert not any(nans)
    return _WHOLE / statistics.median(found[2:]) / 1e9


def write_fp8(folder: Path, config: dict[str, Any]) -> int:
    """Write a Hugging Face checkpoint whose projections are FP8 in blocks of 128 x 128; returns its bytes."""
    folder.mkdir(parents=True)
    held = []
    for name, shape in models.tensors(config):
        if name.endswith("_proj.weight"):
            grid = tuple(-(-length // _BLOCK) for length in shape)
            held.append((name + "_scale_inv", BY_NAME["float32"], grid))
            held.append((name, BY_NAME["float8_e4m3fn"], shape))
        else:
            held.append((name, BY_NAME["bfloat16"], shape))
    held.sort(key=lambda tensor: (-tensor[1].itemsize, tensor[0]))
    rng = numpy.random.default_rng(0)
    noise = {
        1: memoryview(rng.integers(0, 127, 16 << 20, numpy.uint8)),
        2: memoryview(rng.standard_normal(8 << 20, numpy.float32).view(numpy.uint16)[1::2].tobytes()),
        4: memoryview(rng.random(4 << 20, numpy.float32).tobytes()),
    }
    header, places = emit_header(held)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        for _, dtype, shape in held:
            left = int(numpy.prod(shape)) * dtype.itemsize
            while left:
                left -= file.write(noise[dtype.itemsize][:left])
        total = file.tell()
    said = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [_BLOCK, _BLOCK]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    assert total > places[-1]
    return total
