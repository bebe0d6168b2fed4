"""Configs are compared by what they mean, however much of it each of the two spells out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import found
import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 32,
    "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0, "vocab_size": 64, "max_position_embeddings": 16384, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
SAME = [
    (found.GEMMA3, None, {"rope_type": "linear", "factor": 1.0}),
    (found.LLAMA, None, {"rope_type": "linear", "factor": 1.0}),
    (DEEPSEEK, YARN, {**YARN, "beta_fast": 32, "beta_slow": 1}),
    (DEEPSEEK, YARN, {**YARN, "beta_slow": 1}),
    (DEEPSEEK, {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
     {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32}),
]  # fmt: skip
OTHER = [
    (found.GEMMA3, None, {"rope_type": "linear", "factor": 8.0}),
    (found.LLAMA, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 1.0}),
    (DEEPSEEK, YARN, {**YARN, "beta_fast": 16}),
    (DEEPSEEK, YARN, {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}),
]


def pair(folder: Path, config: dict[str, Any], one: Any, other: Any) -> tuple[Path, Path]:
    """Two models of the same weights whose configs scale the rotary embedding in these ways."""
    for name, scaling in (("one", one), ("other", other)):
        said = {key: value for key, value in config.items() if key != "rope_scaling"}
        found.model(
            folder / name, {**said, **({"rope_scaling": scaling} if scaling else {})}, found.arrays(config)
        )
    return folder / "one", folder / "other"


@pytest.mark.parametrize(("config", "one", "other"), SAME)
def test_what_means_the_same_is_equal(config: dict[str, Any], one: Any, other: Any, tmp_path: Path) -> None:
    for source in pair(tmp_path, config, one, other):
        convert(source, tmp_path / f"{source.name}2", to="nemo2", verify=True)
    places = [tmp_path / name for name in ("one", "other", "one2", "other2")]
    for a in places:
        for b in places:
            result = verify(a, b)
            assert result.equal, (a.name, b.name, result.describe())


@pytest.mark.parametrize(("config", "one", "other"), OTHER)
def test_what_means_something_else_is_not(
    config: dict[str, Any], one: Any, other: Any, tmp_path: Path
) -> None:
    a, b = pair(tmp_path, config, one, other)
    result = verify(a, b)
    assert "rope_scaling" in result.describe()
    assert json.loads((a / "config.json").read_text())["model_type"] == config["model_type"]
