"""The kernel may read and write less than it was asked for, at any call: the bytes are the same."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.tensors import strided

CONFIG = {**tiny.CONFIG, "num_attention_heads": 4, "num_key_value_heads": 2}
#: name of an output -> what it is made of, and how
OUTPUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nemo2": ("hf", {"to": "nemo2", "tensor_parallel_size": 2}),
    "cast": ("hf", {"to": "nemo2", "dtype": "float32"}),
    "dist.nemo": ("hf", {"to": "nemo", "tensor_parallel_size": 2}),
    "ranks.nemo": ("hf", {"to": "nemo", "tensor_parallel_size": 2, "rank_files": True}),
    "onnx": ("hf", {"to": "onnx", "pack": True}),
    "back": ("nemo2", {"to": "hf", "max_shard_nbytes": 6000}),
    "back of dist": ("dist.nemo", {"to": "hf"}),
    "back of ranks": ("ranks.nemo", {"to": "hf"}),
    "back of onnx": ("onnx", {"to": "hf"}),
    "plain": ("back", {"to": "safetensors"}),
}


def make(root: Path) -> dict[str, bytes]:
    """Every output, each read back and compared, and its bytes."""
    for name, (source, options) in OUTPUTS.items():
        convert(root / source, root / name, verify="dtype" not in options, **options)
    reshard(root / "nemo2", root / "again", tensor_parallel_size=1, pipeline_parallel_size=2, verify=True)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


class Short:
    """Calls that do a part of what they are asked for, at least a byte, each time another part."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.random, self.calls = (
            random.Random(seed),
            dict.fromkeys(("preadv", "pread", "pwrite", "pwritev"), 0),
        )
        self.real = {name: getattr(os, name) for name in self.calls}
        for name in self.calls:
            patch.setattr(os, name, getattr(self, name))

    def part(self, name: str, nbytes: int) -> int:
        self.calls[name] += 1
        return self.random.randint(1, nbytes) if nbytes else 0

    def some(self, name: str, views: Sequence[Any]) -> list[memoryview]:
        left, kept = self.part(name, sum(memoryview(view).nbytes for view in views)), []
        for view in views:
            piece = memoryview(view).cast("B")[:left]
            left -= len(piece)
            kept += [piece] if len(piece) else []
        return kept

    def preadv(self, fd: int, views: Sequence[Any], offset: int) -> int:
        return self.real["preadv"](fd, self.some("preadv", views), offset)

    def pread(self, fd: int, nbytes: int, offset: int) -> bytes:
        return self.real["pread"](fd, self.part("pread", nbytes), offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self.real["pwrite"](fd, self.some("pwrite", [data])[0], offset)

    def pwritev(self, fd: int, views: Sequence[Any], offset: int) -> int:
        return self.real["pwritev"](fd, self.some("pwritev", views), offset)


def test_every_call_does_a_part_of_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "DIRECT_RUN", 16)  # so that small tensors take the ways of large ones
    for name in ("whole", "short"):
        tiny.write(tmp_path / name / "hf", CONFIG)
    whole = make(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        short = Short(patch, seed=0)
        found = make(tmp_path / "short")
    assert all(count > 10 for count in short.calls.values()), short.calls
    assert found.keys() == whole.keys()
    assert [name for name, data in whole.items() if found[name] != data] == []
