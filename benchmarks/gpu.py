"""Conversions with --device cuda beside --device cpu, cp and the bus, on a RAM disk.

    python benchmarks/gpu.py [--size 1.2B] [--work /dev/shm] [--rounds 3] [--json FILE]

Prints GB/s of source bytes for each case, and whether both devices wrote the same files. Pinned copies to
the device and back and a cp of the source on the same file system are the limits beside them. Decoding is
measured in memory too, in GB/s of codes: pinned H2D is its limit.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

try:
    import torch
except ImportError:
    sys.exit("skipped: torch is not installed")

import gpu_decode
import models

from nemoconv.converters.run.convert import convert

CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("float32 -> bfloat16", "float32", {"dtype": "bfloat16"}),
    ("float32 -> bfloat16, tp8", "float32", {"dtype": "bfloat16", "tensor_parallel_size": 8}),
    ("bfloat16 -> float32", "bfloat16", {"dtype": "float32"}),
    ("bfloat16 -> float16", "bfloat16", {"dtype": "float16"}),
    ("bfloat16, tp8", "bfloat16", {"tensor_parallel_size": 8}),
    ("bfloat16, tp1", "bfloat16", {}),
    ("FP8 -> bfloat16, tp8", "FP8", {"tensor_parallel_size": 8}),
    ("FP8 -> float32", "FP8", {"dtype": "float32"}),
)


def seconds(what: Callable[[], Any], count: int, after: Callable[[], Any] = lambda: None) -> float:
    found = []
    for _ in range(count):
        started = time.perf_counter()
        what()
        found.append(time.perf_counter() - started)
        after()
    return statistics.median(found)


def bus() -> dict[str, float]:
    """GB/s of pinned copies of 1 GiB, to the device, back, and in both directions at once."""
    pinned, other = (torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True) for _ in range(2))
    there, back = (
        torch.empty(1 << 30, dtype=torch.uint8, device="cuda"),
        torch.empty(1 << 30, dtype=torch.uint8, device="cuda"),
    )
    streams = torch.cuda.Stream(), torch.cuda.Stream()

    def both() -> None:
        with torch.cuda.stream(streams[0]):
            there.copy_(pinned, non_blocking=True)
        with torch.cuda.stream(streams[1]):
            other.copy_(back, non_blocking=True)

    def run(what: Callable[[], Any]) -> float:
        def whole() -> None:
            what()
            torch.cuda.synchronize()

        whole()
        return (1 << 30) / seconds(whole, 5) / 1e9

    return {
        "pinned H2D": run(lambda: there.copy_(pinned, non_blocking=True)),
        "pinned D2H": run(lambda: other.copy_(there, non_blocking=True)),
        "pinned, each way at once": run(both),
    }


def same_files(a: Path, b: Path) -> bool:
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    if names != sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file()):
        return False
    return not any(filecmp.cmpfiles(a, b, names, shallow=False)[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(models.SIZES), default="1.2B")
    parser.add_argument("--work", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("skipped: there is no CUDA device")
    found: dict[str, Any] = {
        "GPU": torch.cuda.get_device_name(),
        "cores": len(os.sched_getaffinity(0)),
        **bus(),
        **gpu_decode.decoding(),
    }
    with tempfile.TemporaryDirectory(prefix="nemoconv-bench-", dir=arguments.work) as name:
        folder = Path(name)
        nbytes = {}
        for dtype in ("float32", "bfloat16"):
            config = {**models.SIZES[arguments.size], "dtype": dtype}
            nbytes[dtype] = models.write(folder / dtype, config)
        config = {**models.SIZES[arguments.size], "dtype": "bfloat16"}
        nbytes["FP8"] = gpu_decode.write_fp8(folder / "FP8", config)
        copy = folder / "copy"
        for dtype, size in nbytes.items():
            spent = seconds(
                lambda dtype=dtype: subprocess.run(["cp", "-r", folder / dtype, copy], check=True),
                arguments.rounds,
                lambda: shutil.rmtree(copy),
            )
            found[f"cp, {dtype}"] = size / spent / 1e9
        for case, dtype, options in CASES:
            row: dict[str, Any] = {}
            for device in ("cuda", "cpu"):
                out = folder / device
                count = arguments.rounds
                spent = seconds(
                    partial(
                        convert, folder / dtype, out, to="nemo2", device=device, overwrite=True, **options
                    ),
                    count + 1 if device == "cuda" else count,
                )
                row[device] = nbytes[dtype] / spent / 1e9
            row["same files"] = same_files(folder / "cuda", folder / "cpu")
            found[case] = row
            for device in ("cuda", "cpu"):
                shutil.rmtree(folder / device)
    for key, value in found.items():
        if isinstance(value, dict):
            print(
                f"{key:28} cuda {value['cuda']:6.2f}  cpu {value['cpu']:6.2f} GB/s",
                f" same files: {value['same files']}",
            )
        else:
            print(f"{key:28} {value if not isinstance(value, float) else f'{value:.2f} GB/s'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
