"""The real NeMo 2.5.3 builds mixtures of experts, with multi-token prediction layers, from the context
that we write, and its loader fills their modules with our bits. See real_nemo/README.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.torch_dist.names import logical_name

from . import models
from .test_moe_architectures import build
from .test_mtp_layers import DEPTHS, add_mtp_layers

PYTHON = os.environ.get("NEMOCONV_NEMO_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="NEMOCONV_NEMO_PYTHON does not name a Python that has NeMo (real_nemo/README.md)"
)
CHILD = Path(__file__).with_name("real_nemo") / "moe_child.py"
TIMEOUT = 600


@pytest.mark.parametrize(
    ("case", "experts", "config"),
    [
        ("deepseek_v3", "stacked", "DeepSeekV3Config"),
        ("deepseek_v3", "singleton", "DeepSeekV3Config"),
        ("glm4_moe", "stacked", "GPTConfig"),
    ],
)
def test_every_parameter_has_our_bits(tmp_path: Path, case: str, experts: str, config: str) -> None:
    from safetensors.numpy import load_file

    source = add_mtp_layers(build(tmp_path / "hf", case))
    models.save_bpe(source)
    convert(source, tmp_path / "nemo", to="nemo2", experts=experts, tensor_parallel_size=2)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(PYTHON), "-W", "ignore", str(CHILD), str(tmp_path / "nemo"), str(tmp_path / "loaded")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert json.loads(done.stdout.splitlines()[-1]) == {"config": config, "mtp_num_layers": DEPTHS}
    loaded = {logical_name(name, ()): array for name, array in load_file(tmp_path / "loaded").items()}
    with open_checkpoint(tmp_path / "nemo") as nemo:
        stored = {name: nemo.read(name) for name in nemo.keys()}  # noqa: SIM118
    assert loaded.keys() == stored.keys()
    assert [name for name in stored if loaded[name].tobytes() != stored[name].tobytes()] == []
