"""Decoders that NeMo 2 has no class for, but layers: transformers writes them, we convert them, transformers and
megatron-core load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert

from . import models
from .checks import assert_megatron_agrees, assert_there_and_back, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 130,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 50000.0}
PARTIAL = {**ROPE, "partial_rotary_factor": 0.5}
WHOLE = {"rope_parameters": ROPE}
STABLE = {**{key: PLAIN[key] for key in PLAIN if key != "rms_norm_eps"}, "layer_norm_eps": 3e-5}
GLM4 = {**PLAIN, "rms_norm_eps": 1e-5, "head_dim": 24, "rope_parameters": PARTIAL}
#: name -> (config class of transformers, its arguments)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm3": ("SmolLM3Config", {**PLAIN, **WHOLE}),
    "smollm3-pattern": (
        "SmolLM3Config",
        {**PLAIN, **WHOLE, "no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False},
    ),
    "seed_oss": ("SeedOssConfig", {**PLAIN, **WHOLE, "head_dim": 24}),
    "seed_oss-unbiased": (
        "SeedOssConfig",
        {**PLAIN, "head_dim": 16, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "ernie4_5": ("Ernie4_5Config", {**PLAIN, **WHOLE, "head_dim": 24}),
    "stablelm": ("StableLmConfig", {**STABLE, "rope_parameters": PARTIAL, "use_qkv_bias": True}),
    "stablelm-quarter": ("StableLmConfig", {**STABLE, "num_key_value_heads": 4}),
    # NeMo's norms after attention and MLP have the epsilon 1e-5
    "glm4": ("Glm4Config", GLM4),
}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return models.directories(tmp_path_factory.mktemp("plain_gpt"), build, as_transformers_4)


def build(folder: Path, case: str) -> None:
    """A bfloat16 model with weights that keep activations and logits at order 1, so that all matter."""
    import torch
    import transformers

    name, changes = CASES[case]
    config = getattr(transformers, name)(**changes, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    models.randomize(model)
    model.save_pretrained(folder)


def as_transformers_4(file: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it."""
    written = json.loads(file.read_text())
    written["torch_dtype"] = written.pop("dtype")
    rope = written.pop("rope_parameters")
    written["rope_theta"], written["rope_scaling"] = rope["rope_theta"], None
    if "partial_rotary_factor" in rope:
        written["partial_rotary_factor"] = rope["partial_rotary_factor"]
    written.pop("layer_types", None)
    file.write_text(json.dumps({**written, "transformers_version": "4.55.4"}, indent=2))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_model(hf: Callable[..., Path], tmp_path: Path, case: str) -> None:
    assert_there_and_back(hf(case), hf(case), tmp_path)
    with open_checkpoint(hf(case)) as new, open_checkpoint(hf(case, 4)) as old:
        assert old.model().config == new.model().config


@pytest.mark.parametrize("case", CASES)
def test_megatron_core_computes_the_same(
    hf: Callable[..., Path], gpt_world: World, tmp_path: Path, case: str
) -> None:
    for tp in (1, 2):
        nemo = tmp_path / f"nemo{tp}"
        convert(hf(case), nemo, to="nemo2", tensor_parallel_size=tp)
        assert_megatron_agrees(gpt_world, nemo, models.logits_of(hf(case)), tp, case)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        ("smollm3-pattern", {"no_rope_layers": [1, 0, 0, 1]}),
        ("seed_oss", {"rms_norm_eps": 1e-2}),
        ("stablelm", {"layer_norm_eps": 1e-2}),
        ("ernie4_5", {"rope_parameters": {**ROPE, "rope_theta": 20000.0}}),
        ("glm4", {"rope_parameters": {**PARTIAL, "partial_rotary_factor": 0.25}}),
    ],
)
def test_a_config_that_is_a_little_wrong_is_felt(
    hf: Callable[..., Path], gpt_world: World, tmp_path: Path, case: str, wrong: dict[str, Any]
) -> None:
    shutil.copytree(hf(case), tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, **wrong}))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    found = megatron_difference(gpt_world, tmp_path / "nemo", models.logits_of(hf(case)))
    print(f"{case} {wrong}: {found:.2e}")
    assert found > 2e-4


def test_norms_that_are_exchanged_are_felt(hf: Callable[..., Path], gpt_world: World, tmp_path: Path) -> None:
    """GLM-4's four norms have the same shape: the one before the MLP and the one after attention."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(hf("glm4"), tmp_path / "hf")
    names = ("post_attention_layernorm", "post_self_attn_layernorm")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    swapped = {
        name.replace(names[0], "~").replace(names[1], names[0]).replace("~", names[1]): tensor
        for name, tensor in tensors.items()
    }
    save_file(swapped, tmp_path / "hf/model.safetensors")
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    assert megatron_difference(gpt_world, tmp_path / "nemo", models.logits_of(hf("glm4"))) > 2e-2
