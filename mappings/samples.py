"""Small seeded checkpoints of any registered architecture, for the demo, tests and plug-ins."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..formats.safetensors import emit_header
from ..tensors.dtypes import BY_NAME
from . import table_for
from .hf.fields import read_config

#: a Llama with grouped queries, a scaled rotary embedding and a vocabulary that two ranks cannot share
LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 257,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def tensors(config: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the Hugging Face tensors that a config.json asks for, sorted by name."""
    table = table_for(config, "sample")
    model, _ = read_config(table.fields, config)
    sizes = table.sizes(model)
    return sorted(
        {
            (part.hf.format(**instance.index), part.shape(sizes))
            for instance in table.instances(model, sizes)
            if instance.in_hf
            for part in instance.rule.parts
        }
    )


def build(folder: Path, config: Mapping[str, Any] = LLAMA, seed: int = 0) -> None:
    """Write a Hugging Face directory with config.json and random bfloat16 weights of order 1/16."""
    folder.mkdir(parents=True)
    dtype = BY_NAME["bfloat16"]
    named = tensors(config)
    generator = random.Random(seed)  # noqa: S311 - weights, not secrets
    with open(folder / "model.safetensors", "wb") as file:
        file.write(emit_header([(name, dtype, shape) for name, shape in named])[0])
        for _, shape in named:
            file.write(_halves(generator, prod(shape)))
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")


def _halves(generator: random.Random, count: int) -> bytes:
    """Numbers in bfloat16 of order 1/16: a sign and eight low bits, the highest of two words for each."""
    import numpy

    words = numpy.frombuffer(generator.getrandbits(64 * count).to_bytes(8 * count, "little"), "<u4")
    sign, low = words[::2] >> 31 << 15, words[1::2] >> 24
    return (sign | 0x3D00 | low).astype("<u2").tobytes()
