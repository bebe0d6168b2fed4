"""Every output that nemoconv can make of tiny deterministic inputs, as digests of its files and its tensors.

A *case* is an input (a model of :mod:`.configs`, or files of ``fixtures/``), a *step* one output made of it or of
an earlier step's output. Of an output are kept: 16 digits of the SHA-256 of each file, and for each logical tensor
8 digits over its type, shape and bytes. A step that is refused keeps the class of the error and how its message
begins. Only the public surface (``nemoconv.convert``, ``reshard``, ``open``, ``errors``) and ``nemoconv.mappings.samples``
are used, so that it holds while everything behind them moves.

Nothing an output holds is a time or a path. It does hold the version, which :func:`_stable` takes out, so that a
new version alone changes nothing here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import nemoconv
from nemoconv.mappings import samples

from . import configs

FIXTURES = Path(__file__).parents[2] / "fixtures"
#: bits of NaNs with payloads, infinities, zeros of both signs, subnormals, the largest numbers
AWKWARD = {
    2: (0x7FC0, 0x7F81, 0xFFC1, 0x7F80, 0xFF80, 0x8000, 0x0000, 0x0001, 0x8001, 0x7F7F, 0x7E00, 0xFC01),
    4: (0x7FC00000, 0x7F800001, 0xFFC00001, 0x7F800000, 0x80000000, 1, 0x80000001, 0x7F7FFFFF),
}
SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
ITEMSIZES = {"BF16": 2, "F16": 2, "F32": 4}
TP2 = {"tensor_parallel_size": 2}
PP2 = {"pipeline_parallel_size": 2}
EP2 = {"expert_parallel_size": 2}
Output = dict[str, Any]
Made = dict[str, Output]


# --- inputs ----------------------------------------------------------------------------------------


def bits(name: str, shape: Sequence[int], itemsize: int) -> bytes:
    """Random bytes of a tensor, from its name, with every awkward number in front."""
    nbytes = prod(shape) * itemsize
    data = random.Random(name).randbytes(nbytes)
    front = struct.pack(f"<{len(AWKWARD[itemsize])}{'H' if itemsize == 2 else 'I'}", *AWKWARD[itemsize])
    return (front + data[len(front) :])[:nbytes]


def save(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> None:
    """A safetensors file of (type, shape, bytes)."""
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


def build(folder: Path, config: Mapping[str, Any], float32: Sequence[str] = (), shards: int = 1) -> Path:
    """A Hugging Face directory. Tensors whose names end in one of ``float32`` have that type."""
    folder.mkdir(parents=True)
    usual = SAFETENSORS[config["torch_dtype"]]
    tensors = {}
    for name, shape in samples.tensors(config):
        dtype = "F32" if name.endswith(tuple(float32)) else usual
        tensors[name] = dtype, shape, bits(name, shape, ITEMSIZES[dtype])
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
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
    """The members of an archive, and all that lies around them."""
    data = path.read_bytes()
    frame, end = b"", 0
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.isfile():
                frame += data[end : member.offset_data]
                end = member.offset_data + member.size
                yield member.name, data[member.offset_data : end]
    yield "(tar)", frame + data[end:]


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
            found[name] = f"{zlib.crc32(checkpoint.read(name).tobytes(), zlib.crc32(about)):08x}"
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
    config: bool = False


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
    """A step of nemoconv.reshard."""
    return Step(name, (of,), partial(_reshard, **options), suffix)


def _reshard(source: Path, target: Path, **options: Any) -> object:
    return nemoconv.reshard(source, target, **options)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _refusal(error: nemoconv.NemoconvError, root: Path) -> str:
    """The class of an error and how its message begins, without the folder that it happened in."""
    first = " ".join(str(error).replace(f"{root}/", "").split())[:60].partition(";")[0]
    return f"{type(error).__name__}: {first}"


def make(case: Case, root: Path, without: Sequence[str] = ()) -> Made:
    """Carry out a case below ``root``. Steps that need something in ``without`` are left out, and what is
    made of them."""
    made: Made = {}
    places = {"": case.build(root / "source")}
    for step in case.steps:
        source = next((places[name] for name in step.of if name in places), None)
        if source is None or step.needs in without:
            continue
        target = root / (_slug(step.name) + step.suffix)
        try:
            step.run(source, target)
            made[step.name] = {"files": files(target), "tensors": tensors(target, None)}
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


#: what every model is made into
_MODEL = (
    convert("nemo2", "", "nemo2"),
    convert("nemo2 tp2", "", "nemo2", **TP2),
    convert("nemo2 tp2 pp2", "", "nemo2", **TP2, **PP2),
    convert("hf of nemo2", ("nemo2 tp2 pp2", "nemo2 tp2", "nemo2"), "hf"),
    convert("nemo tp2", "", "nemo", **TP2),
    convert("nemo ranks tp2", "", "nemo", **TP2, rank_files=True),
    convert("hf of nemo", "nemo tp2", "hf"),
    convert("hf of nemo ranks", "nemo ranks tp2", "hf"),
    convert("onnx std", "", "onnx", flavor="std"),
    convert("onnx genai", "", "onnx", flavor="genai", pack=True),
    convert("hf of onnx std", "onnx std", "hf"),
    convert("hf of onnx genai", "onnx genai", "hf"),
    convert("safetensors of nemo2", "nemo2", "safetensors"),
    reshard("nemo2 tp2 to pp2", "nemo2 tp2", tensor_parallel_size=1, **PP2),
    reshard("nemo tp2 to pp2", "nemo tp2", ".nemo", tensor_parallel_size=1, **PP2),
    reshard("nemo ranks tp2 to pp2", "nemo ranks tp2", ".nemo", tensor_parallel_size=1, **PP2),
)
_EXPERTS = (
    convert("nemo2 ep2", "", "nemo2", **EP2),
    convert("nemo2 singleton", "", "nemo2", experts="singleton", **EP2),
    convert("hf of nemo2 singleton", "nemo2 singleton", "hf"),
)
_VARIANT = tuple(
    step
    for step in _MODEL
    if step.name
    in ("nemo2 tp2", "hf of nemo2", "nemo tp2", "nemo ranks tp2", "hf of nemo", "onnx std", "hf of onnx std")
)


def _model(case: str, steps: tuple[Step, ...]) -> Case:
    config = configs.config(case)
    experts = _EXPERTS if any("expert" in key for key in config) and steps is _MODEL else ()
    return Case(case, partial(build, config=config), (*steps, *experts))


# --- files -----------------------------------------------------------------------------------------


def _copied(folder: Path, source: Path) -> Path:
    """A copy of a fixture, so that its path is no part of anything."""
    folder.mkdir(parents=True)
    target = folder / source.name
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))


def _fixture(name: str, *steps: Step, architectures: Sequence[str] = ()) -> Case:
    return Case(name, partial(_copied, source=FIXTURES / name), steps, tuple(architectures))


def _graph(folder: Path, name: str) -> Path:
    """A graph of another exporter beside the config.json of its model."""
    import onnx_source

    folder.mkdir(parents=True)
    for file in sorted((FIXTURES / "onnx" / name).iterdir()):
        data = file.read_bytes()
        packed = file.suffix == ".gz"
        (folder / (file.stem if packed else file.name)).write_bytes(gzip.decompress(data) if packed else data)
    (folder / "config.json").write_text(json.dumps(onnx_source.CONFIGS[name.partition("_")[2]]))
    return folder


_TOKENIZED = (
    *(step for step in _MODEL if not step.name.startswith(("safetensors", "nemo2 tp2 to"))),
    convert("safetensors of hf", "", "safetensors"),
)
_ARCHIVE = (
    convert("hf", "", "hf"),
    convert("nemo2 tp2 pp2", "", "nemo2", **TP2, **PP2),
    convert("nemo of hf", "hf", "nemo"),
    convert("onnx genai", "", "onnx", flavor="genai"),
    convert("safetensors", "", "safetensors"),
    reshard("tp2", "", ".nemo", **TP2, pipeline_parallel_size=1),
    reshard("pp2", "", ".nemo", tensor_parallel_size=1, **PP2),
)
_NEMO2 = (
    convert("hf", "", "hf"),
    convert("nemo2 pp2", "", "nemo2", **PP2),
    convert("nemo tp2", "", "nemo", **TP2),
    convert("nemo ranks tp2", "", "nemo", **TP2, rank_files=True),
    convert("onnx std", "", "onnx", flavor="std"),
    convert("safetensors", "", "safetensors"),
    convert("peft", "", "peft"),
    reshard("tp2", "", **TP2),
    reshard("pp2", "", tensor_parallel_size=1, **PP2),
)


def _speech(name: str, head: str | None = None) -> tuple[Step, ...]:
    at = f" {head}" if head else ""
    options = {"head": head} if head else {}
    return (
        convert(f"hf{at}", "", "hf", **options),
        convert(f"nemo of hf{at}", f"hf{at}", "nemo"),
        convert(f"onnx{at}", "", "onnx", **options),
        convert(f"onnx packed of hf{at}", f"hf{at}", "onnx", pack=True),
        convert(f"hf of onnx{at}", f"onnx{at}", "hf"),
        convert(f"safetensors{at}", "", "safetensors", **options),
        convert(f"nemo2{at}", "", "nemo2", **options),
    )


_SPEECH = {
    "ctc": "parakeet_ctc",
    "tdt": "parakeet_tdt",
    "rnnt": "parakeet_rnnt",
    "canary": "canary",
}


def _fixtures() -> Iterator[Case]:
    for name in ("nemo2/hf_llama", "nemo2/hf_tiny", "legacy/hf_llama_gqa", "legacy/hf_llama_mha"):
        yield _fixture(name, *_TOKENIZED)
    for name in ("legacy_tp1", "legacy_tp2_pp2", "mcore_torch_dist", "mcore_zarr_bf16"):
        yield _fixture(f"legacy/llama_{name}.nemo", *_ARCHIVE)
    for name in ("nemo_tp1pp1", "nemo_tp2pp1", "nemo_lora_tp1pp1"):
        yield _fixture(f"nemo2/{name}", *_NEMO2)
    config = {"config": FIXTURES / "nemo2" / "hf_tiny"}
    for name in ("mcore0140_optim_dp2", "mcore0161_tp2"):
        yield _fixture(
            f"nemo2/{name}",
            convert("hf", "", "hf", **config),
            convert("safetensors", "", "safetensors"),
            reshard("tp2 pp2", "", **TP2, **PP2, **config),
            reshard("tp2 pp2 without optimizer", "", **TP2, **PP2, **config, drop_optimizer=True),
        )
    for sample, architecture in _SPEECH.items():
        yield _fixture(f"speech/{sample}.nemo", *_speech(sample), architectures=[architecture])
    yield _fixture(
        "speech/hybrid_tdt_ctc.nemo",
        convert("hf", "", "hf"),
        *_speech("hybrid", "ctc"),
        *_speech("hybrid", "transducer"),
    )
    for name in ("hf_ctc", "hf_tdt"):
        yield _fixture(
            f"speech/{name}",
            convert("nemo", "", "nemo"),
            convert("hf of nemo", "nemo", "hf"),
            convert("onnx", "", "onnx"),
            convert("safetensors", "", "safetensors"),
        )
    for folder in sorted(path for path in (FIXTURES / "onnx").iterdir() if path.is_dir()):
        steps = [convert("hf", "", "hf", "onnx"), convert("nemo2 tp2", "", "nemo2", "onnx", **TP2)]
        if "int4" in folder.name or "gemma" in folder.name:  # weights, or norms, that are held only roughly
            steps.append(convert("hf, dequantized", "", "hf", "onnx", dequantize=True))
        yield Case(f"onnx/{folder.name}", partial(_graph, name=folder.name), tuple(steps))


def cases() -> dict[str, Case]:
    """All cases by name."""
    found = [
        *(_model(name, _MODEL) for name in configs.MODELS),
        *(_model(name, _VARIANT) for name in configs.VARIANTS),
        *_fixtures(),
    ]
    return {case.name: case for case in found}
