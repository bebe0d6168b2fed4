"""Multi-token prediction takes part in a change of layout where the config says so itself."""

from __future__ import annotations

from typing import Any

import pytest

from nemoconv.live.placement import Placement
from nemoconv.live.plan import LivePlan, model_config, plan_reshard
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.tensors.layout import Layout

HF: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "vocab_size": 64,
}
TABLE = load_table("deepseek_v3")
EMBEDDING = "embedding.word_embeddings.weight"


def planned(config: dict[str, Any]) -> LivePlan:
    stages = Layout(pipeline_parallel_size=2)
    return plan_reshard(TABLE, config, Placement(Layout(2), (0, 1)), Placement(stages, (0, 1)), world_size=2)


def names(plan: LivePlan, rank: int, side: Any) -> set[str]:
    return {name for _, name in plan.locals(rank, side)}


def test_a_config_json_counts_layers_that_nobody_built() -> None:
    assert model_config(None, HF)[1]["mtp_num_layers"] == 0
    assert model_config(TABLE, read_config(TABLE.fields, HF)[0])[1]["mtp_num_layers"] == 1


def test_they_go_to_the_last_stage_with_an_embedding() -> None:
    plan = planned(read_config(TABLE.fields, HF)[0])
    first, last = (names(plan, rank, "target") for rank in (0, 1))
    assert not any(name.startswith("mtp.") for name in first)
    inner = "mtp.layers.0.transformer_layer.mlp.experts.local_experts.7.linear_fc1.weight"
    assert {inner, "mtp.layers.0.eh_proj.weight", EMBEDDING} <= last
    assert EMBEDDING in first
    assert "mtp.layers.0.eh_proj.weight" in names(plan, 0, "source")
    shape = plan.locals(0, "source")[0, "mtp.layers.0.eh_proj.weight"].shape
    assert shape == (16, 64)  # cut by its rows
    assert EMBEDDING in plan.copies


@pytest.mark.parametrize("count", [0, 1])
def test_without_them_the_last_stage_has_none(count: int) -> None:
    config = {**read_config(TABLE.fields, HF)[0], "mtp_num_layers": count}
    assert (EMBEDDING in names(planned(config), 1, "target")) is bool(count)
