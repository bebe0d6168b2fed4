"""Falcon, BERT, Gemma and adapters through NeMo 1's archives, run by transformers and peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import legacy_lora as lora
import legacy_nemo as legacy
import pytest
import tiny

from nemoconv.converters.run.convert import convert

from . import models

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCONS = {
    "7B": {},
    "40B": NEW,
    "11B": {**NEW, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    "one after the other": {"multi_query": False, "parallel_attn": False, "bias": True},
}
BERT = {**SIZES, "intermediate_size": 96, "max_position_embeddings": 64}


def save(folder: Path, model: Any) -> Path:
    """The model with random weights of order 1/4, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.25 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.save_pretrained(folder)
    return folder


def computed(folder: Path, kind: Any) -> Any:
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = (torch.arange(12) * 7 % 39)[None]
    with torch.no_grad():
        return tuple(value for value in model(tokens).to_tuple() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("kind", FALCONS)
def test_falcon(tmp_path: Path, kind: str) -> None:
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**SIZES, **FALCONS[kind]))
    source = save(tmp_path / "hf", model)
    convert(source, tmp_path / "x.nemo", to="nemo", pipeline_parallel_size=2, verify=True)
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    models.assert_same_tensors(source, tmp_path / "back")
    expected, found = (computed(tmp_path / f, transformers.FalconForCausalLM) for f in ("hf", "back"))
    assert (expected[0] - found[0]).abs().max() < 1e-5 * expected[0].abs().max()


def test_a_falcon_with_another_order_of_norms_is_felt(tmp_path: Path) -> None:
    """The control: a layer's two norms exchanged."""
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**SIZES, **NEW))
    expected = computed(save(tmp_path / "hf", model), transformers.FalconForCausalLM)
    layer = model.transformer.h[1]
    layer.ln_attn, layer.ln_mlp = layer.ln_mlp, layer.ln_attn
    model.save_pretrained(tmp_path / "other")
    found = computed(tmp_path / "other", transformers.FalconForCausalLM)
    assert (expected[0] - found[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", ["BertModel", "BertForPreTraining", "MegatronBertModel", "MegatronBertForPreTraining"]
)
def test_bert(tmp_path: Path, name: str) -> None:
    kind = getattr(transformers, name)
    source = save(tmp_path / "hf", kind(kind.config_class(**BERT)))
    for rank_files in (False, True):
        nemo, back = tmp_path / f"{rank_files}.nemo", tmp_path / f"back{rank_files}"
        convert(source, nemo, to="nemo", tensor_parallel_size=2, rank_files=rank_files, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(source, back)
        # equal weights at other addresses may be added up in another order
        for one, other in zip(computed(source, kind), computed(back, kind), strict=True):
            assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_gemma_with_the_one_in_its_norms(tmp_path: Path) -> None:
    """As NVIDIA's script keeps it: taken off, the model is the same up to rounding; left in, another."""
    config = {**legacy.CONFIG, "model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
    config |= {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "torch_dtype": "float32"}
    source = save(tmp_path / "hf", transformers.GemmaForCausalLM(transformers.GemmaConfig(**config)))
    arrays = tiny.load(source)
    (state,) = legacy.states(arrays, config).values()
    for name, value in state.items():
        if value is not None and ("layer_norm_weight" in name or "layernorm.weight" in name):
            state[name] = value + 1
    said = {
        "activation": "geglu", "openai_gelu": True, "apply_embedding_scaling": True,
        "bias_activation_fusion": False, "share_embeddings_and_output_weights": True,
    }  # fmt: skip
    for added in (True, False):
        yaml = legacy.yaml_of(config, **said, layernorm_zero_centered_gamma=not added)
        legacy.pack(tmp_path / f"{added}.nemo", legacy.members({(0, 0): state}, yaml))
        convert(tmp_path / f"{added}.nemo", tmp_path / str(added), to="hf")
    expected, less, left = (
        computed(tmp_path / f, transformers.GemmaForCausalLM)[0] for f in ("hf", "True", "False")
    )
    assert (expected - less).abs().max() < 1e-3 * expected.abs().max()
    assert (expected - left).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_adapters_in_peft(tmp_path: Path, tp: int, pp: int) -> None:
    """The base model with the adapters on it, as peft runs it, is the base model with what they add."""
    peft = pytest.importorskip("peft")
    config = {**legacy.CONFIG, "num_key_value_heads": 2, "torch_dtype": "float32"}
    base = save(tmp_path / "base", transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)))
    state = {name: value * 0.1 for name, value in lora.adapters(config).items()}
    ranks = lora.ranks(state, tp, pp, config["num_hidden_layers"])
    files = legacy.members(ranks, legacy.yaml_of(config, peft=lora.PEFT))
    convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "peft", to="peft", verify=True)

    merged = transformers.LlamaForCausalLM.from_pretrained(base)
    weights = merged.state_dict()
    for name, delta in lora.deltas(state, config).items():
        weights[name] += delta.float()
    tokens = (torch.arange(12) * 7 % 39)[None]
    with torch.no_grad():
        expected = merged.eval()(tokens).logits
        plain = transformers.LlamaForCausalLM.from_pretrained(base).eval()
        without = plain(tokens).logits
        found = peft.PeftModel.from_pretrained(plain, tmp_path / "peft").eval()(tokens).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (without - expected).abs().max() > 1e-1 * expected.abs().max()
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["lora_alpha"] == lora.ALPHA
