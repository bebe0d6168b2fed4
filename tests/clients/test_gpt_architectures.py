"""GPT-2, StarCoder, GPT-NeoX and GLM: transformers writes them, we convert them, transformers and megatron-core
load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert

from . import models
from .checks import assert_megatron_agrees, assert_there_and_back, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 130, "n_positions": 64, "n_inner": 96}
PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 130,
    "max_position_embeddings": 64,
}
NEOX = {**PLAIN, "use_parallel_residual": False, "layer_norm_eps": 3e-5}
GLM = {**PLAIN, "num_key_value_heads": 2, "head_dim": 24, "pad_token_id": 0, "rms_norm_eps": 3e-5}
ROPE = {"rope_type": "default", "rope_theta": 50000.0}
#: name -> (config class of transformers, its arguments)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**GPT, "layer_norm_epsilon": 3e-5}),
    "gpt2-exact": (
        "GPT2Config",
        {**GPT, "n_inner": None, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", {**GPT, "layer_norm_epsilon": 3e-5}),
    "gpt_bigcode-mha": ("GPTBigCodeConfig", {**GPT, "multi_query": False, "tie_word_embeddings": False}),
    "gpt_neox": ("GPTNeoXConfig", {**NEOX, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}),
    "gpt_neox-tanh": ("GPTNeoXConfig", {**NEOX, "hidden_act": "gelu_fast", "tie_word_embeddings": True}),
    "glm": ("GlmConfig", {**GLM, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}),
    "glm-unbiased": ("GlmConfig", {**GLM, "attention_bias": False, "num_key_value_heads": 4}),
}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return models.directories(tmp_path_factory.mktemp("gpt"), build, as_transformers_4)


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
    written.pop("num_key_value_heads" if written["model_type"] == "gpt_bigcode" else "", None)
    rope = written.pop("rope_parameters", None)
    if rope and written["model_type"] == "gpt_neox":
        written["rotary_pct"], written["rotary_emb_base"] = rope["partial_rotary_factor"], rope["rope_theta"]
    elif rope:
        written["rope_theta"] = rope["rope_theta"]
        written["partial_rotary_factor"] = rope["partial_rotary_factor"]
    file.write_text(json.dumps({**written, "transformers_version": "4.53.3"}, indent=2))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_model(hf: Callable[..., Path], tmp_path: Path, case: str) -> None:
    for style in (4, 5):
        assert_there_and_back(hf(case, style), hf(case, 5), tmp_path / str(style))


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
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"layer_norm_epsilon": 1e-2}),
        ("gpt2", {"n_head": 2}),
        ("gpt_bigcode", {"activation_function": "gelu"}),
        ("gpt_neox", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}),
        ("glm", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}),
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


def test_a_headless_gpt2_file_is_read(hf: Callable[..., Path], tmp_path: Path) -> None:
    """The file of the first release has neither prefix nor head, and the causal masks of old versions."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(hf("gpt2"), tmp_path / "hf")
    file = tmp_path / "hf/model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(3)}
    save_file(tensors, file)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", verify=True)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    models.assert_same_tensors(hf("gpt2"), tmp_path / "back")
