"""What live resharding puts into the parameters of megatron-core's models, on two and four processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard

from . import models
from .models import Variant, variant
from .worlds import SCRIPT, World

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TOLERANCE = 2e-4
EXPERTS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    ranks = World(tmp_path_factory.mktemp("world") / "stderr", SCRIPT.with_name("megatron_live_rank.py"))
    yield ranks
    ranks.close()


def experts(folder: Path) -> Path:
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**EXPERTS)).float()
    models.randomize(model)
    model.save_pretrained(folder)
    return folder


def sizes(tp: int = 1, pp: int = 1, ep: int = 1, vpp: int = 1) -> dict[str, int]:
    return {
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "expert_parallel_size": ep,
        "virtual_pipeline_parallel_size": vpp,
    }


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        ("dense", {"tp": 2}, {"pp": 2}),
        ("tied", {"pp": 2}, {"tp": 2}),
        ("tied", {"tp": 2}, {"pp": 2, "vpp": 2}),
        ("dense", {"tp": 4}, {"tp": 2, "pp": 2}),
        ("experts", {"tp": 2}, {"ep": 2}),
        ("experts", {"ep": 4}, {"tp": 2, "ep": 2}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_megatron_core_computes_what_transformers_computes(
    hf: Callable[[Variant], Path],
    world: World,
    tmp_path: Path,
    model: str,
    first: dict[str, int],
    last: dict[str, int],
) -> None:
    answers = run(hf, world, tmp_path, model, first, last)
    assert all(answer["given"] for answer in answers)
    assert len(answers[0]["same"]) > 20
    assert max(answer["diff"] for answer in answers if "diff" in answer) < TOLERANCE


def test_the_judge_sees_two_rows_that_changed_places(
    hf: Callable[[Variant], Path], world: World, tmp_path: Path
) -> None:
    answers = run(hf, world, tmp_path, "dense", {"tp": 2}, {"pp": 2}, spoil=True)
    assert max(answer["diff"] for answer in answers if "diff" in answer) > 10 * TOLERANCE


def run(
    hf: Callable[[Variant], Path],
    world: World,
    folder: Path,
    model: str,
    first: dict[str, int],
    last: dict[str, int],
    **job: Any,
) -> list[dict[str, Any]]:
    import torch

    dense = variant("gqa", groups=4, layers=4, tied=model == "tied")
    source = experts(folder / "hf") if model == "experts" else hf(dense)
    convert(source, folder / "whole", to="nemo2")
    fields = folder / "fields"  # the model's config, as it states the layout
    reshard(folder / "whole", fields, **sizes(**last))
    logits = models.logits(source, "float32")
    assert 1 < logits.abs().max() < 30
    torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, folder / "reference.pt")
    return world.run(
        "compare_live",
        directory=str(fields),
        hf=str(source),
        reference=str(folder / "reference.pt"),
        first=sizes(**first),
        last=sizes(**last),
        tp=last.get("tp", 1),
        pp=last.get("pp", 1),
        ep=last.get("ep", 1),
        **job,
    )
