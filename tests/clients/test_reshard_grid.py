"""Every layout of a small grid, each cut from the one before, loaded by megatron-core at just that layout."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard

from . import models
from .worlds import SCRIPT, World

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TOLERANCE = 2e-4
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
EXPERTS = {
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
#: name -> (config class of transformers, its arguments)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("LlamaConfig", COMMON),
    "experts": ("Qwen3MoeConfig", {**COMMON, **EXPERTS}),
}
#: (tp, pp, ep, etp, vpp); more ranks than four take long to start
GRID = {
    "dense": [(tp, pp, 1, 1, vpp) for tp, pp, vpp in product((1, 2), (1, 2), (1, 2)) if pp >= vpp],
    "experts": [
        (tp, pp, ep, etp, vpp)
        for tp, pp, ep, etp, vpp in product((1, 2), (1, 2), (1, 2, 4), (1, 2), (1, 2))
        if pp >= vpp and etp <= tp and tp * pp * ep <= 4
    ],
}


@pytest.fixture(scope="module")
def grid_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    ranks = World(tmp_path_factory.mktemp("world") / "stderr", SCRIPT.with_name("megatron_grid_rank.py"))
    yield ranks
    ranks.close()


def build(folder: Path, name: str) -> Path:
    """Random weights with which every one of them matters to the logits."""
    import transformers

    kind, arguments = MODELS[name]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**arguments)).float()
    models.randomize(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_megatron_core_loads_every_layout_of_a_grid(name: str, grid_world: World, tmp_path: Path) -> None:
    import torch

    source = build(tmp_path / "hf", name)
    logits = models.logits(source, "float32")
    assert 0.5 < logits.abs().max() < 50
    reference = tmp_path / "reference.pt"
    torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, reference)
    before = tmp_path / "nemo"
    convert(source, before, to="nemo2")
    layouts = list(GRID[name])
    random.Random(0).shuffle(layouts)
    assert len(layouts) == {"dense": 6, "experts": 15}[name]
    for number, (tp, pp, ep, etp, vpp) in enumerate(layouts):
        out = tmp_path / f"out{number}"
        reshard(
            before,
            out,
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            expert_parallel_size=ep,
            expert_tensor_parallel_size=etp,
            virtual_pipeline_parallel_size=vpp,
        )
        sizes = {
            "tensor_model_parallel_size": tp,
            "pipeline_model_parallel_size": pp,
            "expert_model_parallel_size": ep,
            "virtual_pipeline_model_parallel_size": vpp,
        }
        answers = grid_world.run(
            "compare_grid",
            directory=str(out),
            reference=str(reference),
            tp=tp,
            pp=pp,
            ep=ep,
            etp=etp,
            sizes=sizes,
        )
        differences = [answer["diff"] for answer in answers if "diff" in answer]
        assert len(differences) == tp * ep
        assert max(differences) < TOLERANCE, (tp, pp, ep, etp, vpp)
        before = out
    back = tmp_path / "back"
    convert(before, back, to="hf")
    models.assert_same_tensors(source, back)


def test_the_judge_sees_two_experts_exchanged(grid_world: World, tmp_path: Path) -> None:
    """A control: the logits are not those of a model with two experts in each other's place."""
    import torch

    source = build(tmp_path / "hf", "experts")
    logits = models.logits(source, "float32")
    reference = tmp_path / "reference.pt"
    torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, reference)
    file = source / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    one, other = (header[f"model.layers.1.mlp.experts.{n}.down_proj.weight"]["data_offsets"] for n in (0, 3))
    rows = [slice(start + a, start + b) for a, b in (one, other)]
    data[rows[0]], data[rows[1]] = data[rows[1]], data[rows[0]]
    file.write_bytes(data)
    convert(source, tmp_path / "nemo", to="nemo2", expert_parallel_size=2)
    sizes = {"tensor_model_parallel_size": 1, "expert_model_parallel_size": 2}
    answers = grid_world.run(
        "compare_grid",
        directory=str(tmp_path / "nemo"),
        reference=str(reference),
        tp=1,
        pp=1,
        ep=2,
        etp=1,
        sizes=sizes,
    )
    assert max(answer["diff"] for answer in answers) > 100 * TOLERANCE
