"""The embedded sample: a tiny seeded Llama, converted there and back, with a tour of what happened."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

CONFIG = {
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


def build(folder: Path, seed: int = 0) -> None:
    """Write the sample as a Hugging Face directory: config.json and random bfloat16 weights."""
    from nemoconv.formats.dtypes import BY_NAME
    from nemoconv.formats.safetensors import emit_header
    from nemoconv.mappings import load_table
    from nemoconv.mappings.config_fields import read_config
    from nemoconv.mappings.rules import attention_sizes

    table = load_table("llama")
    config, _ = read_config(table.fields, CONFIG)
    sizes = attention_sizes(config)
    dtype = BY_NAME["bfloat16"]
    tensors = sorted(
        (part.hf.format(**instance.index), dtype, part.shape(sizes))
        for instance in table.instances(config, sizes)
        for part in instance.rule.parts
    )
    folder.mkdir(parents=True)
    generator = random.Random(seed)  # noqa: S311 - weights, not secrets
    with open(folder / "model.safetensors", "wb") as file:
        file.write(emit_header(tensors)[0])
        for _, _, shape in tensors:
            # sign and mantissa at random, exponents around 2**-4: every bit pattern is a sane weight
            halves = (
                generator.getrandbits(1) << 15 | 0x3D00 | generator.getrandbits(8) for _ in range(prod(shape))
            )
            file.write(b"".join(half.to_bytes(2, "little") for half in halves))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def run(folder: str | None = None) -> Iterator[str]:
    """Build, convert to NeMo 2 at tensor parallel size 2, convert back, verify; yields a tour."""
    from nemoconv.converters.conversion import convert
    from nemoconv.converters.inspection import inspect
    from nemoconv.converters.verification import verify
    from nemoconv.errors import NemoconvError, OutputError

    with ExitStack() as stack:
        root = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="nemoconv-demo-")))
        source, nemo, back = root / "llama", root / "llama-nemo2-tp2", root / "llama-back"
        if source.exists():
            raise OutputError(f"{source}: exists already", hint="choose an empty folder")
        build(source)
        yield f"1. A Hugging Face Llama with random weights: {source}"
        report = convert(source, nemo, to="nemo2", tensor_parallel_size=2, verify=True)
        yield f"2. nemoconv hf2nemo2 {source} {nemo} --tp 2 --verify"
        yield f"     {report.tensors_in} tensors became {report.tensors_out}: layers are stacked, q, k and v"
        yield "     interleaved by query group, gate and up fused; one .distcp file per rank:"
        for file in sorted(path for path in nemo.rglob("*") if path.is_file()):
            yield f"       {file.stat().st_size:>9,}  {file.relative_to(nemo)}"
        facts = inspect(nemo)
        rows, true = facts["vocabulary"]["rows"], facts["vocabulary"]["true"]
        yield f"     The vocabulary of {true} does not divide by 2: it was padded to {rows} rows of zeros."
        convert(nemo, back, to="hf", verify=True)
        yield f"3. nemoconv nemo2hf {nemo} {back} --verify"
        yield "     The padding is gone, the names and shapes are the old ones."
        yield f"4. nemoconv verify {nemo}"
        yield f"     {verify(nemo).describe()}"
        yield f"5. nemoconv verify {source} {back}"
        result = verify(source, back)
        yield f"     {result.describe()}"
        if not result.equal:
            raise NemoconvError(f"the demo came back changed: {result.describe()}")
        yield "Nothing here needed torch, NeMo, Megatron or a GPU." + ("" if folder else " Removed it all.")
