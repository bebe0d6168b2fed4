"""Baichuan 2 with its rows normalised once: a Llama of transformers whose output layer divides its rows by
their lengths, as the released code does, says what has to come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.mappings.models.baichuan import BAICHUAN2_VOCABULARY

from . import models
from .checks import assert_megatron_agrees, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

CONFIG: dict[str, Any] = {
    "model_type": "baichuan",
    "architectures": ["BaichuanForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": BAICHUAN2_VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "rope_theta": 50000.0,
    "torch_dtype": "bfloat16",
}


def llama() -> Any:
    """With weights that bfloat16 holds, and rows of the output layer of all lengths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {key: value for key, value in CONFIG.items() if isinstance(value, int)}
    rope = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
    config = LlamaConfig(**sizes, rms_norm_eps=3e-5, rope_parameters=rope, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    models.randomize(model)
    model.lm_head.weight.data *= torch.linspace(0.2, 5, BAICHUAN2_VOCABULARY)[:, None]
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return model.eval()


def norm_head(states: Any, weight: Any) -> Any:
    """The output layer of the released code."""
    import torch

    return torch.nn.functional.linear(states, torch.nn.functional.normalize(weight))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory, and the states before the output layer."""
    import torch
    from safetensors.torch import save_file

    folder, model = tmp_path_factory.mktemp("baichuan2"), llama()
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    for i in range(2):
        layer = f"model.layers.{i}.self_attn."
        qkv = [tensors.pop(f"{layer}{name}_proj.weight") for name in "qkv"]
        tensors[layer + "W_pack.weight"] = torch.cat(qkv)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with torch.no_grad():
        return folder, model.model(models.ids(130, 32)).last_hidden_state


def test_megatron_core_computes_what_the_released_code_does(
    built: tuple[Path, Any], gpt_world: World, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    source, states = built
    head = load_file(source / "model.safetensors")["lm_head.weight"].float()
    for tp in (1, 2):
        nemo = tmp_path / f"nemo{tp}"
        convert(source, nemo, to="nemo2", tensor_parallel_size=tp, normalize_rows=True)
        with open_checkpoint(nemo) as checkpoint:
            unit = torch.from_numpy(checkpoint.read("output_layer.weight").astype("float32"))
        # torch rounds the lengths otherwise, so that the rounding to bfloat16 may go the other way
        torch.testing.assert_close(unit, torch.nn.functional.normalize(head), rtol=2**-8, atol=0)
        assert_megatron_agrees(gpt_world, nemo, states @ unit.T, tp, "baichuan 2")
    assert megatron_difference(gpt_world, tmp_path / "nemo1", norm_head(states, head)) < 2e-2  # bfloat16
    assert (
        megatron_difference(gpt_world, tmp_path / "nemo1", states @ head.T) > 1
    )  # what NeMo's importer makes

    convert(tmp_path / "nemo2", tmp_path / "back", to="hf")
    again = load_file(tmp_path / "back/model.safetensors")["lm_head.weight"].float()
    assert again.equal(unit)
    torch.testing.assert_close(norm_head(states, again), norm_head(states, head), rtol=0, atol=2e-2)
