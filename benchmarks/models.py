"""Random checkpoints of any size, written in constant memory; and sparse ones of any shape."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy

from nemoconv.converters.registry import find_format, open_checkpoint
from nemoconv.converters.run.plan import Wish, prepare
from nemoconv.formats.safetensors import emit_header
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.stores.output import OutputDirectory
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.layout import Layout

LLAMA_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
}
SIZES = {
    "0.3B": {**LLAMA_1B, "num_hidden_layers": 8, "hidden_size": 1024, "intermediate_size": 8192,
             "num_attention_heads": 16, "vocab_size": 64128},
    "1.2B": LLAMA_1B,
    "2.4B": {**LLAMA_1B, "num_hidden_layers": 35, "intermediate_size": 8192},
}  # fmt: skip
#: for sparse files only
LLAMA_405B = {
    **LLAMA_1B,
    "num_hidden_layers": 126,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}

#: 128 experts, 3.2 GB; and two released shapes, for sparse files only
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 6,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 640,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "dtype": "bfloat16",
}
QWEN3_235B = {
    **QWEN3_MOE,
    "num_hidden_layers": 94,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "head_dim": 128,
    "vocab_size": 151936,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "max_position_embeddings": 163840,
    "num_nextn_predict_layers": 0,
    "dtype": "bfloat16",
}

SIZES["4.5B"] = {**LLAMA_1B, "num_hidden_layers": 16, "hidden_size": 4096, "intermediate_size": 14336,
                 "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}  # fmt: skip
SIZES["8B"] = {**LLAMA_1B, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
               "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}  # fmt: skip
SIZES["moe-0.1B"] = {**QWEN3_MOE, "num_hidden_layers": 2, "moe_intermediate_size": 128}
SIZES["moe-1.6B"] = QWEN3_MOE

#: distinct random values; they repeat
_NOISE = 16 << 20


def tensors(config: dict[str, object]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the Hugging Face tensors of a config."""
    table = load_table(str(config["model_type"]))
    model, _ = read_config(table.fields, config)
    sizes = table.sizes(model)
    named = {
        part.hf.format(**instance.index): part.shape(sizes)
        for instance in table.instances(model, sizes)
        for part in instance.rule.parts
    }
    return list(named.items())


def write(
    folder: Path, config: dict[str, object], *, shard_nbytes: int = 5 * 10**9, sparse: bool = False
) -> int:
    """Write a Hugging Face checkpoint of this config, in its dtype, and return its bytes.

    The weights are normally distributed as trained ones are: no infinity, no NaN. With ``sparse`` they
    are holes, which read as zeros and take no disk. A file has at most ``shard_nbytes`` bytes.
    """
    folder.mkdir(parents=True)
    dtype = BY_NAME[str(config["dtype"])]
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = total = 0
    for name, shape in tensors(config):
        nbytes = int(numpy.prod(shape)) * dtype.itemsize
        if shards[-1] and held + nbytes > shard_nbytes:
            shards.append([])
            held = 0
        shards[-1].append((name, shape))
        held += nbytes
        total += nbytes
    index: dict[str, str] = {}
    normal = numpy.random.default_rng(0).standard_normal(_NOISE, dtype=numpy.float32)
    noise = memoryview((normal * numpy.float32(0.02)).astype(dtype.numpy()).view(numpy.uint8))
    del normal
    for number, shard in enumerate(shards, 1):
        file_name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        shard.sort()  # as safetensors' own writer orders them
        header, _ = emit_header([(name, dtype, shape) for name, shape in shard])
        with open(folder / file_name, "wb") as file:
            file.write(header)
            left = sum(int(numpy.prod(shape)) for _, shape in shard) * dtype.itemsize
            if sparse:
                file.truncate(len(header) + left)
            while left and not sparse:
                left -= file.write(noise[:left])
            file.flush()
            os.fsync(file.fileno())
        index |= {name: file_name for name, _ in shard}
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    return total


def write_nemo2(
    source: Path, folder: Path, *, tensor_parallel_size: int = 1, pipeline_parallel_size: int = 1
) -> None:
    """Write the NeMo 2 directory that a Hugging Face one would become, with holes for the data.

    Frames, ``.metadata`` and ``context/`` are real; checksums are those of no data, so it cannot be
    verified, only planned and inspected.
    """
    layout = Layout(tensor_parallel_size, pipeline_parallel_size)
    output = OutputDirectory(folder)
    with open_checkpoint(source) as opened, output:
        conversion = prepare(opened, output, find_format("nemo2"), Wish(layout))
        for payload in conversion.payloads:
            payload.crc32 = 0
        for file in conversion.plan.outputs():
            os.ftruncate(file.fd, file.size)  # not allocate(), which takes the disk
        conversion.writer.finish()
        output.commit()
