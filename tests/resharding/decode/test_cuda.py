"""Dequantization by torch gives the bits of the host's kernels, on its own and in a conversion on a GPU.

The kernels and the geometry run on torch's CPU device too, so that they are tested where there is no GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.formats.safetensors import read_header
from nemoconv.mappings import samples
from nemoconv.resharding import execute_cuda
from nemoconv.resharding.decode import arithmetic as decode
from nemoconv.resharding.decode.quantized import MXFP4, BlockScaledFP8, Encoding, decoded
from nemoconv.resharding.plan import Job
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor, contiguous_strides

torch = pytest.importorskip("torch")

needs_cuda = pytest.mark.cuda
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float32": numpy.float32}
RNG = numpy.random.default_rng(11)


def bits(array: numpy.ndarray) -> numpy.ndarray:
    return array.view({2: numpy.uint16, 4: numpy.uint32}[array.dtype.itemsize])


def back(tensor: Any) -> numpy.ndarray:
    """A tensor's bits as an array."""
    integers = tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    return integers.cpu().numpy().view({2: numpy.uint16, 4: numpy.uint32}[tensor.element_size()])


def scales() -> numpy.ndarray:
    """float32 [2000, 1]: what is special, what lies beside it, and random bits of any size."""
    limits = numpy.finfo(numpy.float32)
    special = [0.0, 1.0, 2.0**-126, 2.0**-127, 2.0**-149, 2.0**-133, 2.0**127, limits.max, 1 / 448, 3.4e36]
    special += [numpy.inf, numpy.nan, 2.0**119 * 1.9999, 2.0**-140, 1.00390625, 1.01171875, limits.tiny]
    chosen = numpy.array([*special, *(-value for value in special)], numpy.float32)
    anything = RNG.integers(0, 1 << 32, 2000 - len(chosen), numpy.uint32).view(numpy.float32)
    return numpy.concatenate([chosen, anything])[:, None]


def check(found: Any, expected: numpy.ndarray) -> None:
    """The same bits but for NaNs, which must be NaNs."""
    nan = numpy.isnan(expected.astype(numpy.float32))
    assert (back(found.isnan().to(torch.int16)) == nan).all()
    assert (back(found) == bits(expected))[~nan].all()
    assert 0 < nan.sum() < nan.size // 2


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_fp8_code_at_every_scale(device: str, kind: str, dtype: str) -> None:
    codes = numpy.arange(256, dtype=numpy.uint8)[None].repeat(2000, 0)
    table = scales()
    expected = numpy.empty(codes.shape, NUMPY[dtype])
    decode.fp8_into(codes, kind, table, expected)
    rows, columns = torch.arange(2000, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    given = [torch.from_numpy(array).to(device) for array in (codes, table)]
    found = execute_cuda.DeviceDecoder(device).fp8(
        given[0], kind, given[1], rows.to(device), columns.to(device), getattr(torch, dtype)
    )
    check(found, expected)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("device", DEVICES)
def test_every_mxfp4_byte_at_every_exponent(device: str, dtype: str) -> None:
    packed = numpy.concatenate(
        [
            numpy.arange(256, dtype=numpy.uint8)[None].repeat(256, 0),
            RNG.integers(0, 256, (256, 256), numpy.uint8),  # bytes beside any other byte
        ],
        axis=1,
    ).reshape(-1, 16)
    exponents = numpy.arange(256, dtype=numpy.uint8).repeat(32)
    expected = numpy.empty((len(packed), 32), NUMPY[dtype])
    decode.mxfp4_into(packed, exponents, expected)
    there, powers = (torch.from_numpy(array).to(device) for array in (packed, exponents))
    check(execute_cuda.DeviceDecoder(device).mxfp4(there, powers, getattr(torch, dtype)), expected)


def stored(folder: Path, name: str, array: numpy.ndarray, dtype: str) -> StoredTensor:
    """An array after 7 bytes of a file: nothing may count on alignment."""
    (folder / name).write_bytes(b"\xff" * 7 + array.tobytes())
    strides = contiguous_strides(array.shape, array.dtype.itemsize)
    extent = Extent(SourceFile(folder / name), 7, (0,) * array.ndim, array.shape, strides)
    return StoredTensor(name, BY_NAME[dtype], array.shape, (extent,))


def fp8_encoding(folder: Path, shape: tuple[int, ...], block: tuple[int, int], scale: str) -> Encoding:
    codes = RNG.integers(0, 127, shape, numpy.uint8) | RNG.integers(0, 2, shape, numpy.uint8) << 7
    grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    values = RNG.random(grid, numpy.float32) + numpy.float32(0.1)
    if scale == "float8_e8m0fnu":
        held = RNG.integers(100, 150, grid, numpy.uint8)
    else:
        held = values.astype({"float32": numpy.float32, "bfloat16": ml_dtypes.bfloat16}[scale])
    return BlockScaledFP8(
        stored(folder, "w", codes, "float8_e4m3fn"), stored(folder, "s", held, scale), block
    )


def mxfp4_encoding(folder: Path, shape: tuple[int, ...]) -> Encoding:
    packed = RNG.integers(0, 256, (*shape, 16), numpy.uint8)
    exponents = RNG.integers(100, 150, shape, numpy.uint8)
    return MXFP4(stored(folder, "w", packed, "uint8"), stored(folder, "s", exponents, "uint8"))


def viewed(tensor: StoredTensor, shape: tuple[int, ...], order: tuple[int, ...]) -> StoredTensor:
    """A tensor in C order seen in other factors, and these in another order, as rules see weights."""
    steps = contiguous_strides(shape, tensor.dtype.itemsize)
    turned, strides = tuple(shape[a] for a in order), tuple(steps[a] for a in order)
    extent = Extent(tensor.extents[0].file, 0, (0,) * len(order), turned, strides)
    return StoredTensor(tensor.name, tensor.dtype, turned, (extent,))


CASES: dict[str, tuple[tuple[int, ...], tuple[int, int], tuple[int, ...], tuple[int, ...]]] = {
    "plain": ((300, 200), (128, 128), (300, 200), (0, 1)),
    "turned": ((300, 200), (128, 128), (300, 200), (1, 0)),
    "ragged": ((5, 7), (4, 4), (5, 7), (0, 1)),
    "a row": ((64, 33), (1, 33), (64, 33), (0, 1)),
    "one scale": ((64, 33), (64, 33), (64, 33), (1, 0)),
    "experts": ((3, 40, 24), (16, 8), (3, 40, 24), (0, 2, 1)),
    "heads": ((48, 40), (16, 16), (2, 4, 6, 40), (1, 0, 2, 3)),
    "both sides": ((48, 40), (16, 16), (4, 12, 5, 8), (3, 1, 0, 2)),
    "one row": ((1, 40), (16, 16), (1, 40), (0, 1)),
    "one column": ((40, 1), (16, 16), (40, 1), (0, 1)),
}


def boxes(shape: tuple[int, ...], count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    found = [((0,) * len(shape), shape)]
    for _ in range(count):
        start = tuple(int(RNG.integers(0, n)) for n in shape)
        found.append(
            (start, tuple(int(RNG.integers(1, n - at + 1)) for n, at in zip(shape, start, strict=True)))
        )
    return found


def assemble(job: Job, start: tuple[int, ...], shape: tuple[int, ...], device: str) -> Any:
    """What the worker does for a tile, in one; None where it leaves it to the host."""
    parts = execute_cuda.parts_of(job, start, shape)
    if parts is None:
        return None
    buffer = numpy.empty(sum(part.nbytes for part in parts), numpy.uint8)
    at = 0
    for part in parts:
        part.read(buffer[at : at + part.nbytes], numpy.empty(1 << 20, numpy.uint8))
        at += part.nbytes
    data, dtype = torch.from_numpy(buffer).to(device), getattr(torch, job.source_dtype.name)
    return execute_cuda.assemble(parts, execute_cuda.DeviceDecoder(device), data, (start, shape), dtype)


def job_of(tensor: StoredTensor, sources: tuple[Extent, ...] | None = None) -> Job:
    return Job("w", tensor.shape, tensor.dtype, tensor.dtype, sources or tensor.extents, ())


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_any_box_of_fp8(tmp_path: Path, device: str, case: str, dtype: str) -> None:
    shape, block, factors, order = CASES[case]
    scale = {"plain": "bfloat16", "experts": "float8_e8m0fnu"}.get(case, "float32")
    tensor = decoded("w", fp8_encoding(tmp_path, shape, block, scale), BY_NAME[dtype])
    tensor = viewed(tensor, factors, order)
    assert execute_cuda.decodable(job_of(tensor))
    for start, size in boxes(tensor.shape, 12):
        found = assemble(job_of(tensor), start, size, device)
        assert found.shape == size
        assert (back(found) == bits(read_box(tensor, start, size))).all()


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize(
    ("factors", "order"),
    [
        ((2, 6, 96), (0, 1, 2)),
        ((2, 6, 96), (0, 2, 1)),
        ((2, 3, 2, 96), (0, 2, 3, 1)),
        ((2, 6, 3, 32), (0, 2, 3, 1)),
        ((12, 96), (0, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_any_box_of_mxfp4(
    tmp_path: Path, device: str, factors: tuple[int, ...], order: tuple[int, ...], dtype: str
) -> None:
    tensor = viewed(decoded("w", mxfp4_encoding(tmp_path, (2, 6, 3)), BY_NAME[dtype]), factors, order)
    for start, size in boxes(tensor.shape, 12):
        found = assemble(job_of(tensor), start, size, device)
        assert found.shape == size
        assert (back(found) == bits(read_box(tensor, start, size))).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_tile_of_several_tensors_and_padding(tmp_path: Path, device: str) -> None:
    """Experts lie in tensors of their own; what no source holds is 0."""
    pieces, expected = [], numpy.zeros((3, 20, 40), ml_dtypes.bfloat16)
    for number, rows in enumerate((20, 16)):
        (folder := tmp_path / str(number)).mkdir()
        tensor = decoded("w", fp8_encoding(folder, (rows, 40), (16, 16), "float32"), BY_NAME["bfloat16"])
        expected[number, :rows] = read_box(tensor, (0, 0), (rows, 40))
        pieces.append(Extent(tensor.extents[0].file, 0, (number, 0, 0), (1, rows, 40), (0, 80, 2)))
    job = Job("w", (3, 20, 40), BY_NAME["bfloat16"], BY_NAME["bfloat16"], tuple(pieces), (), fill=True)
    for start, size in boxes(job.shape, 12):
        index = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        found = assemble(job, start, size, device)
        assert (back(found) == bits(numpy.ascontiguousarray(expected[index]))).all()


def test_what_lies_too_oddly_is_left_to_the_host(tmp_path: Path) -> None:
    """Factors that straddle rows, or cut the groups of MXFP4."""
    fp8 = decoded("w", fp8_encoding(tmp_path, (6, 10), (4, 4), "float32"), BY_NAME["bfloat16"])
    odd = viewed(fp8, (4, 15), (1, 0))
    assert execute_cuda.parts_of(job_of(odd), (0, 0), odd.shape) is None
    fours = decoded("w", mxfp4_encoding(tmp_path, (4, 3)), BY_NAME["bfloat16"])
    odd = viewed(fours, (4, 6, 16), (1, 0, 2))
    assert execute_cuda.parts_of(job_of(odd), (0, 0, 0), (6, 4, 8)) is None
    plain = stored(tmp_path, "plain", numpy.zeros((6, 10), numpy.uint16), "bfloat16")
    assert not execute_cuda.decodable(job_of(fp8, (*fp8.extents, *plain.extents)))
    assert not execute_cuda.decodable(job_of(plain))


LLAMA = {**samples.LLAMA, "num_hidden_layers": 2}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "attention_bias": True,
    "vocab_size": 67,
    "torch_dtype": "bfloat16",
}
SAID = {
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]},
    "mxfp4": {"quant_method": "mxfp4"},
}
Held = dict[str, tuple[str, tuple[int, ...], bytes]]


def to_fp8(held: Held, *, nan: bool) -> None:
    """Projections become random codes in blocks of 16 x 16."""
    for name, (_, (*_, rows, columns), _) in [item for item in held.items() if "_proj.weight" in item[0]]:
        codes = RNG.integers(0, 256, (rows, columns), numpy.uint8)
        if not nan:
            codes[codes & 127 == 127] = 0
        grid = -(-rows // 16), -(-columns // 16)
        held[name] = "F8_E4M3", (rows, columns), codes.tobytes()
        held[name + "_scale_inv"] = "F32", grid, RNG.random(grid, numpy.float32).tobytes()


def to_mxfp4(held: Held, *, nan: bool) -> None:
    """Experts become random codes; infinity times zero is a NaN."""
    for name in [name for name in held if name.endswith(("gate_up_proj", "down_proj"))]:
        _, (experts, inside, outside), _ = held.pop(name)
        shape = experts, outside, inside // 32
        exponents = RNG.integers(100, 150, shape, numpy.uint8) | (255 if nan else 0)
        held[name + "_scales"] = "U8", shape, exponents.tobytes()
        packed = RNG.integers(0, 256, (*shape, 16), numpy.uint8)
        held[name + "_blocks"] = "U8", packed.shape, packed.tobytes()


def quantized(folder: Path, kind: str, *, nan: bool) -> Path:
    """A checkpoint whose larger weights are random codes; with ``nan`` a NaN is in every one."""
    samples.build(folder, LLAMA if kind == "fp8" else GPT_OSS)
    file = SourceFile(folder / "model.safetensors")
    held = {
        name: (tensor.dtype.safetensors, tensor.shape, file.pread(tensor.nbytes, tensor.extents[0].offset))
        for name, tensor in read_header(file)[0].items()
    }
    {"fp8": to_fp8, "mxfp4": to_mxfp4}[kind](held, nan=nan)
    header, data = {}, b""
    for name, (dtype, shape, raw) in held.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SAID[kind]}))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@needs_cuda
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("target", [None, "float32", "float16"])
@pytest.mark.parametrize("kind", SAID)
def test_both_devices_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, target: str | None, tp: int, nan: bool
) -> None:
    """And the device is used: else this would compare the host with itself."""

    crossed: list[str] = []
    real = execute_cuda.CudaWorker._cross

    def cross(worker: Any, job: Any, start: Any, shape: Any, parts: Any = None) -> Any:
        result = real(worker, job, start, shape, parts)
        if parts:
            crossed.append("device" if result is not None else "host")
        return result

    monkeypatch.setattr(execute_cuda.CudaWorker, "_cross", cross)
    source, notes = quantized(tmp_path / "hf", kind, nan=nan), {}
    for device in ("cpu", "cuda"):
        report = convert(
            source, tmp_path / device, to="nemo2", tensor_parallel_size=tp, dtype=target, device=device
        )
        notes[device] = sorted(report.notes)
    assert files(tmp_path / "cpu") == files(tmp_path / "cuda")
    assert notes["cpu"] == notes["cuda"]
    assert len(crossed) >= 4
    assert set(crossed) == {"host" if nan else "device"}
