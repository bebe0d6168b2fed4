"""The cases: what is made of every architecture, of options that change bytes, and of files that others wrote."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import struct
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from . import configs
from .builder import Case, Named, Step, build, convert, in_place, reshard

FIXTURES = Path(__file__).parents[2] / "fixtures"
TP2 = {"tensor_parallel_size": 2}
PP2 = {"pipeline_parallel_size": 2}
EP2 = {"expert_parallel_size": 2}
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
    reshard("pp2", "", ".nemo", tensor_parallel_size=1, **PP2, virtual_pipeline_parallel_size=1),
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


# --- options ---------------------------------------------------------------------------------------


def _to_fp8(tensors: dict[str, Named], block: tuple[int, int] | None = (16, 16)) -> None:
    """Projections become random codes without NaN: in blocks, or with one scale a tensor."""
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        _, (rows, columns), _ = tensors[name]
        codes = bytes(code & 0x7E | code & 0x80 for code in random.Random(name).randbytes(rows * columns))
        tensors[name] = "F8_E4M3", (rows, columns), codes
        grid = (-(-rows // block[0]), -(-columns // block[1])) if block else ()
        scales = [random.Random(f"{name} {number}").random() for number in range(prod(grid))]
        tensors[name + "_scale_inv"] = "F32", grid, struct.pack(f"<{len(scales)}f", *scales)


def _to_mxfp4(tensors: dict[str, Named]) -> None:
    """Experts become random codes with exponents of moderate size."""
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        _, (experts, inside, outside), _ = tensors.pop(name)
        shape = experts, outside, inside // 32
        exponents = bytes(100 + byte % 50 for byte in random.Random(name).randbytes(prod(shape)))
        tensors[name + "_scales"] = "U8", shape, exponents
        codes = random.Random(name + "_blocks").randbytes(prod(shape) * 16)
        tensors[name + "_blocks"] = "U8", (*shape, 16), codes


def _to_moderate(tensors: dict[str, Named]) -> None:
    """Every bfloat16 number becomes one of order 1/16, of which lengths can be computed."""
    for name, (dtype, shape, _) in tensors.items():
        codes = random.Random(name).randbytes(prod(shape))
        tensors[name] = dtype, shape, b"".join(bytes((code, 0x3D)) for code in codes)


def _gzipped(folder: Path, source: Path) -> Path:
    """An archive as ``tar -z`` packs it."""
    folder.mkdir(parents=True)
    (folder / source.name).write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    return folder / source.name


def _unpacked(folder: Path, source: Path) -> Path:
    """An archive as the folder of its members."""
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked"


def _changed(case: str, **changes: Any) -> dict[str, Any]:
    return {**configs.config(case), **changes}


_DECODED = (
    convert("nemo2 tp2", "", "nemo2", **TP2),
    convert("hf", "", "hf"),
    convert("hf float32", "", "hf", dtype="float32"),
    convert("onnx std", "", "onnx", flavor="std"),
)


def _options() -> Iterator[Case]:
    yield Case(
        "llama with options",
        partial(build, config=configs.config("llama"), shards=3),
        (
            convert("hf in shards", "", "hf", max_shard_nbytes=8000),
            convert("hf float32", "", "hf", dtype="float32"),
            convert("hf float16", "", "hf", dtype="float16"),
            convert("nemo2 float64", "", "nemo2", dtype="float64"),
            convert("nemo2 tp2", "", "nemo2", **TP2),
            convert("nemo2 padded", "", "nemo2", **TP2, make_vocab_size_divisible_by=16),
            convert("nemo float32", "", "nemo", dtype="float32", rank_files=True),
            convert("onnx float16 packed", "", "onnx", dtype="float16", pack=True),
            Step("onnx in place", ("",), in_place, needs="onnx"),
            reshard("virtual", "nemo2 tp2", **PP2, virtual_pipeline_parallel_size=2),
            reshard("uneven", "nemo2 tp2", **PP2, stages=(1, 3)),
            reshard("layers", "nemo2 tp2", layers="1-2"),
            reshard("stage", "nemo2 tp2", **PP2, stage=1),
            reshard("padded", "nemo2 tp2", make_vocab_size_divisible_by=32),
        ),
    )
    yield Case(
        "llama, float32 with options",
        partial(build, config=configs.config("llama, float32")),
        (
            convert("hf bfloat16", "", "hf", dtype="bfloat16"),
            convert("hf float16", "", "hf", dtype="float16"),
            convert("hf exact", "", "hf", dtype="bfloat16", exact=True),
            convert("onnx genai bfloat16", "", "onnx", flavor="genai", dtype="bfloat16"),
        ),
    )
    yield Case(
        "qwen3_moe with options",
        partial(build, config=configs.config("qwen3_moe")),
        (
            convert("nemo2", "", "nemo2"),
            convert("nemo2 singleton", "", "nemo2", experts="singleton"),
            convert("nemo ranks pp2", "", "nemo", rank_files=True, **PP2),
            reshard("ep2", "nemo2", **EP2),
            reshard("tp2 etp1 ep2", "nemo2", **TP2, **EP2, expert_tensor_parallel_size=1),
            reshard("singleton ep2", "nemo2 singleton", **EP2),
        ),
    )
    left_out = {"allow_ignored": ["num_nextn_predict_layers"]}
    yield Case(
        "deepseek_v3 of two types, mtp left out",
        partial(build, config=configs.config("deepseek_v3"), float32=("e_score_correction_bias",)),
        (
            convert("nemo2 tp2", "", "nemo2", **TP2),
            convert("nemo2 without mtp", "", "nemo2", **left_out),
            convert("onnx std without mtp", "", "onnx", flavor="std", **left_out),
            convert("onnx genai without mtp", "", "onnx", flavor="genai", **left_out),
        ),
    )
    yield Case(
        "nemotron_h of two types",
        partial(build, config=configs.config("nemotron_h"), float32=("A_log", ".D", "dt_bias")),
        (convert("nemo2 tp2", "", "nemo2", **TP2), convert("hf of nemo2", "nemo2 tp2", "hf")),
    )
    extra = {"preprocessor_config.json": {"size": 4}, "chat_template.json": {"chat_template": "x"}}
    extra["generation_config.json"] = {"eos_token_id": [1, 2], "temperature": 0.5}
    yield Case(
        "qwen2_vl with a processor",
        partial(build, config=configs.config("qwen2_vl"), extra=extra),
        (convert("nemo2", "", "nemo2"), convert("hf of nemo2", "nemo2", "hf")),
    )
    fp8 = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    for name, case, block in (
        ("llama in fp8 blocks", "llama", (16, 16)),
        ("llama in fp8", "llama", None),
        ("deepseek_v3 in fp8 blocks", "deepseek_v3, no mtp", (16, 16)),
    ):
        said = {**fp8, "weight_block_size": list(block) if block else None}
        config = _changed(case, quantization_config=said)
        yield Case(name, partial(build, config=config, change=partial(_to_fp8, block=block)), _DECODED)
    config = _changed("gpt_oss", quantization_config={"quant_method": "mxfp4"}, hidden_size=64)
    config["intermediate_size"] = 64
    yield Case("gpt_oss in mxfp4", partial(build, config=config, change=_to_mxfp4), _DECODED)
    yield Case(
        "baichuan 2",
        partial(
            build,
            config=_changed("baichuan", vocab_size=125696, hidden_size=8, intermediate_size=12),
            change=_to_moderate,
        ),
        (
            convert("nemo2", "", "nemo2"),
            convert("nemo2 of normalized rows", "", "nemo2", normalize_rows=True),
        ),
    )
    for how, pack in (("gzipped", _gzipped), ("unpacked", _unpacked)):
        steps = [convert("hf", "", "hf"), reshard("tp2", "", **TP2, pipeline_parallel_size=1)]
        archive = FIXTURES / "legacy" / "llama_legacy_tp2_pp2.nemo"
        yield Case(f"an archive, {how}", partial(pack, source=archive), tuple(steps))


def _trained() -> Iterator[Case]:
    """What trainers save by torch: adapters, archives of other kinds, rank directories of Megatron-LM."""
    for name in ("lora_tp2_pp2", "lora_canonical"):
        steps = (
            convert("peft", "", "peft"),
            convert("safetensors", "", "safetensors"),
            convert("hf", "", "hf"),
        )
        yield _fixture(f"trained/{name}.nemo", *steps)
    for name in ("own_layers_old_torch", "virtual_stages"):
        yield _fixture(f"trained/{name}.nemo", *_ARCHIVE)
    for name in ("megatron_llama", "megatron_mixtral", "megatron_mixtral_grouped"):
        config = {"config": FIXTURES / "trained" / name / "hf"}
        yield _fixture(
            f"trained/{name}",
            convert("hf", "", "hf", **config),
            convert("nemo2 tp2", "", "nemo2", **TP2, **config),
            convert("nemo tp2", "", "nemo", **TP2, **config),
            convert("onnx std", "", "onnx", **config),
            convert("safetensors", "", "safetensors"),
            reshard("tp2 pp2", "", **TP2, **PP2, **config),
            reshard("tp2 pp2 to pp2", "tp2 pp2", tensor_parallel_size=1, **config),
            reshard("tp2 vpp", "", **TP2, **PP2, virtual_pipeline_parallel_size=2, **config),
            *([reshard("ep2", "", **EP2, **config)] if "mixtral" in name else []),
        )


def cases() -> dict[str, Case]:
    """All cases by name."""
    found = [
        *(_model(name, _MODEL) for name in configs.MODELS),
        *(_model(name, _VARIANT) for name in configs.VARIANTS),
        *_options(),
        *_fixtures(),
        *_trained(),
    ]
    return {case.name: case for case in found}
