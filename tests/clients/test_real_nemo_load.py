"""The real NeMo 2.5.3 builds plain GPT models, for most of which it has no class, from the context that we write,
and its loader fills their modules with our bits. See real_nemo/README.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.torch_dist.names import logical_name

from . import models, test_gpt_architectures, test_plain_gpt
from .test_real_nemo_moe import CHILD, PYTHON, TIMEOUT
from .test_real_nemo_moe import pytestmark as needs_nemo

pytestmark = needs_nemo
#: architecture -> the class of the config
CASES = {
    **dict.fromkeys(("smollm3", "seed_oss", "ernie4_5", "stablelm", "gpt2", "gpt_neox"), "GPTConfig"),
    "glm": "ChatGLMConfig",
    "glm4": "Gemma2Config",
}
#: what megatron-core's modules have in float32 until training casts them
WIDER = {"gpt2": ["embedding.position_embeddings.weight"]}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_our_bits(tmp_path: Path, case: str) -> None:
    file = test_plain_gpt if case in test_plain_gpt.CASES else test_gpt_architectures
    file.build(tmp_path / "hf", case)
    models.save_bpe(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    out = tmp_path / "loaded"
    out.mkdir()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [
        str(PYTHON),
        "-W",
        "ignore",
        str(CHILD),
        str(tmp_path / "nemo"),
        str(out / "model.safetensors"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert json.loads(done.stdout.splitlines()[-1])["config"] == CASES[case]
    held = {logical_name(name, ()): tensor for name, tensor in models.tensors(out).items()}
    assert [name for name, (dtype, _, _) in held.items() if dtype != "BF16"] == WIDER.get(case, [])
    with open_checkpoint(tmp_path / "nemo") as nemo:
        stored = {name: nemo.read(name) for name in nemo.keys()}  # noqa: SIM118
    assert held.keys() == stored.keys()
    for name in WIDER.get(case, []):
        stored[name] = stored[name].astype("float32")
    assert [name for name in stored if held[name][2] != stored[name].tobytes()] == []
