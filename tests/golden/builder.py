"""Every output that nemoconv can make of tiny deterministic inputs, as digests of its files and its tensors.

A *case* is an input (a model of :mod:`.configs`, or files of ``fixtures/``), a *step* one output made of it or of
an earlier step's output. Of an output are kept: 16 digits of the SHA-256 of each file, and for each logical tensor
6 digits over its type, shape and bytes. A step that is refused keeps the class of the error and how its message
begins. Only the public surface (``nemoconv.convert``, ``reshard``, ``open``, ``errors``) and ``nemoconv.mappings.samples``
are used, so that it holds while everything behind them moves.

Nothing an output holds is a time or a path. It does hold the version, which :func:`_stable` takes out, so that a
new version alone changes nothing here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nemoconv
from nemoconv.mappings import samples

#: bits of NaNs with payloads, infinities, zeros of both signs, subnormals, the largest numbers
AWKWARD = {
    2: (0x7FC0, 0x7F81, 0xFFC1, 0x7F80, 0xFF80, 0x8000, 0x0000, 0x0001, 0x8001, 0x7F7F, 0x7E00, 0xFC01),
    4: (0x7FC00000, 0x7F800001, 0xFFC00001, 0x7F800000, 0x80000000, 1, 0x80000001, 0x7F7FFFFF),
}
SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
ITEMSIZES = {"BF16": 2, "F16": 2, "F32": 4}
Output = dict[str, Any]
Made = dict[str, Output]
#: type, shape and bytes of a tensor
Named = tuple[str, Sequence[int], bytes]


# --- inputs ----------------------------------------------------------------------------------------


def bits(name: str, shape: Sequence[int], itemsize: int) -> bytes:
    """Random bytes of a tensor, from its name, with every awkward number in front."""
    nbytes = prod(shape) * itemsize
    data = random.Random(name).randbytes(nbytes)
    front = struct.pack(f"<{len(AWKWARD[itemsize])}{'H' if itemsize == 2 else 'I'}", *AWKWARD[itemsize])
    return (front + data[len(front) :])[:nbytes]


def save(path: Path, tensors: Mapping[str, Named]) -> None:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, _, data in tensors.values())


def build(
    folder: Path,
    config: Mapping[str, Any],
    float32: Sequence[str] = (),
    shards: int = 1,
    change: Callable[[dict[str, Named]], object] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """A Hugging Face directory. Tensors whose names end in one of ``float32`` have that type; ``change``
    makes others of them; ``extra`` are JSON files beside them."""
    folder.mkdir(parents=True)
    usual = SAFETENSORS[config["torch_dtype"]]
    tensors: dict[str, Named] = {}
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    for name, shape in samples.tensors(plain):
        dtype = "F32" if name.endswith(tuple(float32)) else usual
        tensors[name] = dtype, shape, bits(name, shape, ITEMSIZES[dtype])
    if change:
        change(tensors)
    for file, told in {"config.json": dict(config), **(extra or {})}.items():
        (folder / file).write_text(json.dumps(told, indent=2) + "\n")
    if shards == 1:
        save(folder / "model.safetensors", tensors)
        return folder
    weights = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = list(tensors)[number::shards]
        save(folder / file, {name: tensors[name] for name in part})
        weights |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    return folder


# --- digests ---------------------------------------------------------------------------------------


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _stable(name: str, data: bytes) -> bytes:
    """The content of a file without nemoconv's version.

    A manifest tells it in ``written_by``, a graph as its producer's; a manifest's checksums of itself and of
    graphs follow from it.
    """
    if name.endswith("nemoconv_manifest.json"):
        told = json.loads(data)
        del told["written_by"], told["crc32"]
        for graph in (entry for file, entry in told["files"].items() if file.endswith(".onnx")):
            del graph["crc32"], graph["size"]
        return json.dumps(told).encode()
    if name.endswith(".onnx"):
        version = nemoconv.__version__.encode()
        return data.replace(bytes([0x1A, len(version)]) + version, b"", 1)
    return data


def _tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The members of an archive, and all that lies around them: where each starts, its header, the padding.

    The manifest comes last; how long it is depends on the version, so its header's size and checksum are left out,
    and of padding only what is not zero is told.
    """
    data = path.read_bytes()
    frame, end = b"", 0
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            header = bytearray(data[member.offset : member.offset_data])
            if member.name.endswith("nemoconv_manifest.json"):
                header[-512 + 124 : -512 + 136] = header[-512 + 148 : -512 + 156] = b""
            frame += data[end : member.offset].rstrip(b"\0") + b"%d" % member.offset_data + header
            end = member.offset_data + member.size
            if member.isfile():
                yield member.name, data[member.offset_data : end]
    yield "(tar)", frame + data[end:].rstrip(b"\0")


def files(place: Path) -> dict[str, str]:
    """Digests of the files of an output, of an archive's members."""
    if place.is_file():
        found = _tar(place)
    else:
        paths = sorted(path for path in place.rglob("*") if path.is_file())
        found = ((path.relative_to(place).as_posix(), path.read_bytes()) for path in paths)
    return {name: _sha(_stable(name, data)) for name, data in found}


def tensors(place: Path, config: Path | None) -> dict[str, str]:
    """Digests of the logical tensors of an output: type, shape and bytes."""
    found = {}
    with nemoconv.open(place, config=config) as checkpoint:
        for name in sorted(checkpoint.keys()):
            spec = checkpoint.spec(name)
            about = f"{spec.dtype.name} {list(spec.shape)}".encode()
            found[name] = hashlib.sha256(about + checkpoint.read(name).tobytes()).hexdigest()[:6]
    return found


# --- steps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """An output, made by ``run(source, target)`` of the first output there is of those named in ``of``.

    ``of`` names steps, or "" for the input itself. ``config`` opens what has none of its own.
    """

    name: str
    of: tuple[str, ...]
    run: Callable[[Path, Path], object]
    suffix: str = ""
    needs: str | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Case:
    """An input and what is made of it; ``build(folder)`` gives the place of the input."""

    name: str
    build: Callable[[Path], Path]
    steps: tuple[Step, ...]
    architectures: tuple[str, ...] = field(default=())


def convert(name: str, of: str | Sequence[str], to: str, needs: str | None = None, **options: Any) -> Step:
    """A step of nemoconv.convert."""
    sources = (of,) if isinstance(of, str) else tuple(of)
    needs = "onnx" if to == "onnx" else needs
    return Step(name, sources, partial(_convert, to=to, **options), ".nemo" if to == "nemo" else "", needs)


def _convert(source: Path, target: Path, **options: Any) -> object:
    return nemoconv.convert(source, target, **options)


def reshard(name: str, of: str, suffix: str = "", **options: Any) -> Step:
    """A step of nemoconv.reshard. ``stages`` go into a layout file."""
    return Step(name, (of,), partial(_reshard, **options), suffix, config=options.get("config"))


def _reshard(source: Path, target: Path, stages: Sequence[int] = (), **options: Any) -> object:
    if stages:
        options["layout"] = target.parent / "layout.yaml"
        options["layout"].write_text(f"stages: {list(stages)}\n")
    return nemoconv.reshard(source, target, **options)


def in_place(source: Path, target: Path) -> object:
    """The graph that the command line adds to a directory."""
    shutil.copytree(source, target)
    command = [sys.executable, "-m", "nemoconv", "hf2onnx", str(target), "--in-place", "-q"]
    return subprocess.run(command, check=True, env={**os.environ, "NO_COLOR": "1"})


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _refusal(error: nemoconv.NemoconvError, root: Path) -> str:
    """The class of an error and how its message begins, without the folder that it happened in."""
    first = " ".join(str(error).replace(f"{root}/", "").split())[:60].partition(";")[0]
    return f"{type(error).__name__}: {first}"


def make(case: Case, root: Path, without: Sequence[str] = ()) -> Made:
    """Carry out a case below ``root``. Steps that need something in ``without`` are left out, and what is
    made of them."""
    with patch.object(os, "fsync"):  # bytes matter here, not that they outlive a power cut
        return _make(case, root, without)


def _make(case: Case, root: Path, without: Sequence[str]) -> Made:
    made: Made = {}
    places = {"": case.build(root / "source")}
    for step in case.steps:
        source = next((places[name] for name in step.of if name in places), None)
        if source is None or step.needs in without:
            continue
        target = root / (_slug(step.name) + step.suffix)
        try:
            step.run(source, target)
            made[step.name] = {"files": files(target), "tensors": tensors(target, step.config)}
            places[step.name] = target
        except nemoconv.NemoconvError as error:
            if target.exists():
                raise
            made[step.name] = {"refused": _refusal(error, root)}
    return made


def kept(case: Case, golden: Made, without: Sequence[str]) -> Made:
    """Of the digests of a case, those that can be made again ``without`` some extras."""
    lost: set[str] = set()
    for step in case.steps:
        if step.needs in without or lost.issuperset(step.of):
            lost.add(step.name)
    return {step: output for step, output in golden.items() if step not in lost}
