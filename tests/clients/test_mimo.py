"""MiMo, whose class came with it: transformers' Qwen 2 and, of its parts, the layer that predicts the token after
the next say what has to come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert

from . import models
from .checks import assert_megatron_agrees, assert_onnx_agrees, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

CONFIG: dict[str, Any] = {
    "model_type": "mimo",
    "architectures": ["MiMoForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM"},
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 130,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-5,
    "rope_theta": 50000.0,
    "attention_bias": True,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
}
MTP = "model.mtp_layers.0."


def mtp_layer(config: Any) -> Any:
    """The released code's ``MiMoMTPLayers``, of transformers' parts."""
    from torch import nn
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

    layer = Qwen2DecoderLayer(config, 0)
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        setattr(layer, name, Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
    layer.input_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
    return layer


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory, and the logits of the next tokens, then of those after them."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {key: CONFIG[key] for key in CONFIG if type(CONFIG[key]) is int}
    rope = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
    config = Qwen2Config(**sizes, rms_norm_eps=3e-5, rope_parameters=rope, attn_implementation="eager")
    model, mtp = Qwen2ForCausalLM(config), mtp_layer(config)
    for seed, part in enumerate((model, mtp)):
        models.randomize(part, seed)
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
        part.eval()
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    tensors |= {MTP + name: tensor.bfloat16() for name, tensor in mtp.state_dict().items()}
    folder = tmp_path_factory.mktemp("mimo")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with torch.no_grad():
        ids = models.ids(130, 32)
        states = model.model(ids).last_hidden_state
        next_ids = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)  # as megatron-core rolls them
        tokens = mtp.token_layernorm(model.model.embed_tokens(next_ids))
        joined = mtp.input_proj(torch.cat([mtp.hidden_layernorm(states), tokens], -1))
        positions = model.model.rotary_emb(joined, torch.arange(32)[None])
        causal = torch.triu(torch.full((1, 1, 32, 32), float("-inf")), diagonal=1)
        out = mtp(joined, attention_mask=causal, position_embeddings=positions)
        out = mtp.final_layernorm(out[0] if isinstance(out, tuple) else out)
        return folder, torch.cat([model.lm_head(states), model.lm_head(out)], 1)


def test_there_and_back_and_in_megatron_core(
    built: tuple[Path, Any], gpt_world: World, tmp_path: Path
) -> None:
    source, expected = built
    assert 1 < expected.abs().max() < 40
    for tp in (1, 2):
        nemo, back = tmp_path / f"nemo{tp}", tmp_path / f"back{tp}"
        convert(source, nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(source, back)
        assert_megatron_agrees(gpt_world, nemo, expected, tp, "mimo")


def test_halves_that_are_exchanged_are_felt(
    built: tuple[Path, Any], gpt_world: World, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source, expected = built
    tensors = load_file(source / "model.safetensors")
    first, second = tensors[MTP + "input_proj.weight"].chunk(2, 1)
    tensors[MTP + "input_proj.weight"] = torch.cat([second, first], 1)
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/config.json").write_text((source / "config.json").read_text())
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    assert megatron_difference(gpt_world, tmp_path / "nemo", expected) > 0.1


def test_without_the_mtp_layer_it_is_a_qwen2(
    built: tuple[Path, Any], gpt_world: World, tmp_path: Path
) -> None:
    source, expected = built
    ignored = ("num_nextn_predict_layers",)
    report = convert(source, tmp_path / "nemo", to="nemo2", allow_ignored=ignored)
    assert any("of multi-token prediction layers are left out" in note for note in report.notes)
    assert_megatron_agrees(gpt_world, tmp_path / "nemo", expected[:, :32], 1, "mimo without")
    convert(source, tmp_path / "onnx", to="onnx", dtype="float32", allow_ignored=ignored)
    assert_onnx_agrees(tmp_path / "onnx", expected[:, :32])
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert json.loads((tmp_path / "back/config.json").read_text())["num_nextn_predict_layers"] == 0
    whole, back = models.tensors(source), models.tensors(tmp_path / "back")
    assert back == {name: tensor for name, tensor in whole.items() if not name.startswith(MTP)}
