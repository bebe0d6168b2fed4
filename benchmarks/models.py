"""Random Llama checkpoints of any size, written in constant memory; and sparse ones of any shape."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy

from nemoconv.formats.dtypes import BY_NAME
from nemoconv.formats.safetensors import emit_header
from nemoconv.mappings import load_table
from nemoconv.mappings.config_fields import read_config
from nemoconv.mappings.rules import attention_sizes

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
    "405B": {**LLAMA_1B, "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248,
             "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128,
             "tie_word_embeddings": False},
}  # fmt: skip


def tensors(config: dict[str, object]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the Hugging Face tensors of a Llama config."""
    table = load_table("llama")
    model, _ = read_config(table.fields, config)
    sizes = attention_sizes(model)
    return [
        (part.hf.format(**instance.index), part.shape(sizes))
        for instance in table.instances(model, sizes)
        for part in instance.rule.parts
    ]


def write(
    folder: Path, config: dict[str, object], *, shard_nbytes: int = 5 * 10**9, sparse: bool = False
) -> int:
    """Write a checkpoint of this config; with ``sparse`` the data are holes. Returns its bytes."""
    folder.mkdir(parents=True)
    dtype = BY_NAME["bfloat16"]
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
    index = {}
    noise = numpy.random.default_rng(0).integers(0, 1 << 16, 32 << 20, dtype=numpy.uint16)
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
                left -= file.write(memoryview(noise).cast("B")[: min(left, noise.nbytes)])
            file.flush()
            os.fsync(file.fileno())
        index |= {name: file_name for name, _ in shard}
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    return total
