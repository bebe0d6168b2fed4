"""Architectures whose class came with the released models, so transformers has none: the same weights in
transformers' Llama or Glm layers say what has to come out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert

from . import models
from .checks import assert_megatron_agrees, assert_onnx_agrees, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

LLAMA3 = {**models.LLAMA3_OTHER}
#: n_heads_in_group, ffn_mult (x 64 x 2 / 3, rounded up to 256); None: not there, "linear": a linear layer
LAYERS = ((2, 2.0), (None, 10.0), (1, None), ("linear", 10.0), (4, "linear"), (None, None))


def block(heads: Any, factor: Any) -> dict[str, Any]:
    """What a layer's config.json says."""
    attention = {"n_heads_in_group": heads if isinstance(heads, int) else None, "no_op": heads is None}
    ffn = {"ffn_mult": factor if isinstance(factor, float) else None, "no_op": factor is None}
    attention |= {"replace_with_linear": heads == "linear", "window_length": None, "sparsify": None}
    return {"attention": attention, "ffn": {**ffn, "replace_with_linear": factor == "linear"}}


def llama(**changes: Any) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=130,
        max_position_embeddings=64,
        rms_norm_eps=3e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        attn_implementation="eager",
    )
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def plain_llama(**changes: Any) -> Any:
    from transformers import LlamaForCausalLM

    return randomized(LlamaForCausalLM(llama(**changes)))


def randomized(model: Any) -> Any:
    """With weights that bfloat16 holds. The rotary frequencies, which are no weights, stay as they are."""
    import torch

    models.randomize(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return model.eval()


def tensors_of(model: Any) -> dict[str, Any]:
    tied = model.config.tie_word_embeddings
    names = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in names.items() if not (tied and name == "lm_head.weight")}


def joined(tensors: dict[str, Any], layer: str, names: tuple[str, ...], to: str) -> None:
    """Put the tensors of a layer one below the other."""
    import torch

    for kind in ("weight", "bias"):
        found = [tensors.pop(f"{layer}{name}.{kind}") for name in names if f"{layer}{name}.{kind}" in tensors]
        if found:
            tensors[f"{layer}{to}.{kind}"] = torch.cat(found)


def baichuan() -> tuple[dict[str, Any], dict[str, Any], Any]:
    model = plain_llama()
    tensors = tensors_of(model)
    for i in range(3):
        qkv = tuple(f"{name}_proj" for name in "qkv")
        joined(tensors, f"model.layers.{i}.self_attn.", qkv, "W_pack")
    config = {
        "model_type": "baichuan",
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "me/mine--modeling_baichuan.BaichuanForCausalLM",
        },
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 130,
        "max_position_embeddings": 64,
        "model_max_length": 64,
        "rms_norm_eps": 3e-5,
        "rope_theta": 50000.0,
        "z_loss_weight": 0,
    }
    return config, tensors, logits(model)


def chatglm(biased: bool = True) -> tuple[dict[str, Any], dict[str, Any], Any]:
    import transformers

    glm = transformers.GlmConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        vocab_size=130,
        max_position_embeddings=64,
        pad_token_id=0,
        rms_norm_eps=3e-5,
        attention_bias=biased,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5},
    )
    model = randomized(transformers.GlmForCausalLM(glm))
    tensors = tensors_of(model)
    for i in range(3):
        layer = f"model.layers.{i}."
        qkv = tuple(f"self_attn.{name}_proj" for name in "qkv")
        joined(tensors, layer, qkv, "self_attention.query_key_value")
    renames = {
        "model.embed_tokens": "transformer.embedding.word_embeddings",
        "model.layers": "transformer.encoder.layers",
        "model.norm": "transformer.encoder.final_layernorm",
        "lm_head": "transformer.output_layer",
        "self_attn.o_proj": "self_attention.dense",
        "gate_up_proj": "dense_h_to_4h",
        "down_proj": "dense_4h_to_h",
    }
    for old, new in renames.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        },
        "num_layers": 3,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 4,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "kv_channels": 24,
        "padded_vocab_size": 130,
        "seq_length": 64,
        "layernorm_epsilon": 3e-5,
        "add_qkv_bias": biased,
        "rope_ratio": 5.0,
        "original_rope": True,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_query_key_layer_scaling": True,
    }
    return config, tensors, logits(model)


def nemotron_nas() -> tuple[dict[str, Any], dict[str, Any], Any]:
    from torch import nn
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

    class Attention(nn.Module):
        """What stands in a layer's place of attention, called as transformers calls that."""

        def __init__(self, inner: nn.Module | None) -> None:
            super().__init__()
            if inner is not None:
                self.linear_attn = inner

        def forward(self, hidden_states: Any, **_: Any) -> tuple[Any, None]:
            inner = getattr(self, "linear_attn", None)
            return (hidden_states * 0 if inner is None else inner(hidden_states)), None

    class MLP(nn.Module):
        def __init__(self, inner: nn.Module | None) -> None:
            super().__init__()
            if inner is not None:
                self.linear_mlp = inner

        def forward(self, hidden_states: Any) -> Any:
            inner = getattr(self, "linear_mlp", None)
            return hidden_states * 0 if inner is None else inner(hidden_states)

    rope = {**LLAMA3, "rope_theta": 50000.0}
    model = LlamaForCausalLM(llama(num_hidden_layers=len(LAYERS), rope_parameters=rope))
    absent = set()
    for i, (layer, (heads, factor)) in enumerate(zip(model.model.layers, LAYERS, strict=True)):
        linear = nn.Linear(64, 64, bias=False)
        if isinstance(heads, int):
            own = llama(num_key_value_heads=4 // heads, rope_parameters=rope)
            layer.self_attn = LlamaAttention(own, i)
        else:
            layer.self_attn = Attention(linear if heads else None)
        size = -(-int(2 * factor * 64 / 3) // 256) * 256 if isinstance(factor, float) else 0
        layer.mlp = LlamaMLP(llama(intermediate_size=size)) if size else MLP(linear if factor else None)
        absent |= {f"model.layers.{i}.input_layernorm.weight"} if heads is None else set()
        absent |= {f"model.layers.{i}.post_attention_layernorm.weight"} if factor is None else set()
    model = randomized(model)
    tensors = {name: tensor for name, tensor in tensors_of(model).items() if name not in absent}
    config = {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        },
        "block_configs": [block(*layer) for layer in LAYERS],
        "hidden_size": 64,
        "intermediate_size": None,
        "num_key_value_heads": None,
        "num_hidden_layers": len(LAYERS),
        "num_attention_heads": 4,
        "vocab_size": 130,
        "max_position_embeddings": 64,
        "rms_norm_eps": 3e-5,
        "rope_theta": 50000.0,
        "rope_scaling": LLAMA3,
    }
    return config, tensors, logits(model)


def bidirectional(kind: str) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """An embedding model or a reranker: states, or a score for each of them, before pooling."""
    import torch

    rope = {**LLAMA3, "rope_theta": 50000.0}
    model = plain_llama(num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=rope)
    model.tie_weights()
    tensors = {name: tensor for name, tensor in tensors_of(model).items() if name != "lm_head.weight"}
    inner = model.model
    for layer in inner.layers:
        layer.self_attn.is_causal = False
    with torch.no_grad():
        ids = models.ids(130, 32)
        states = inner(ids, attention_mask=torch.zeros(2, 1, 32, 32)).last_hidden_state
    config = {
        "model_type": "llama_bidirec",
        "architectures": [kind],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 130,
        "max_position_embeddings": 64,
        "rms_norm_eps": 3e-5,
        "rope_theta": 50000.0,
        "rope_scaling": LLAMA3,
        "tie_word_embeddings": True,
        "pooling": "avg",
    }
    if kind == "LlamaBidirectionalModel":
        return config, {name.removeprefix("model."): tensor for name, tensor in tensors.items()}, states
    score = (torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) / 8).to(torch.bfloat16)
    tensors["score.weight"] = score
    return {**config, "pooling": "last", "temperature": 0.7}, tensors, states @ score.float().T


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(models.ids(130, 32)).logits


CASES = {
    "baichuan": baichuan,
    "chatglm": chatglm,
    "chatglm-unbiased": lambda: chatglm(biased=False),
    "nemotron-nas": nemotron_nas,
    "embedding": lambda: bidirectional("LlamaBidirectionalModel"),
    "reranker": lambda: bidirectional("LlamaBidirectionalForSequenceClassification"),
}
#: one score cannot be cut
SIZES: Mapping[str, tuple[int, ...]] = {"reranker": (1,)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """case -> (directory, what its model computes), each built once."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("described")
    found: dict[str, tuple[Path, Any]] = {}

    def case(name: str) -> tuple[Path, Any]:
        if name not in found:
            config, tensors, expected = CASES[name]()
            folder = root / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
            save_file(
                {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors"
            )
            found[name] = folder, expected
        return found[name]

    return case


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_and_in_megatron_core(built: Any, gpt_world: World, tmp_path: Path, case: str) -> None:
    source, expected = built(case)
    assert 1 < expected.abs().max() < 40
    for tp in SIZES.get(case, (1, 2)):
        nemo, back = tmp_path / f"nemo{tp}", tmp_path / f"back{tp}"
        convert(source, nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(source, back)
        with open_checkpoint(source) as a, open_checkpoint(back) as b:
            assert a.model().config == b.model().config
            assert b.config["architectures"] == a.config["architectures"]
        assert_megatron_agrees(gpt_world, nemo, expected, tp, case)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("baichuan", {"rms_norm_eps": 1e-2}),
        ("chatglm", {"rope_ratio": 4.0}),
        ("nemotron-nas", {"rope_theta": 40000.0}),
        ("embedding", {"rope_scaling": {**LLAMA3, "factor": 4.0}}),
    ],
)
def test_a_config_that_is_a_little_wrong_is_felt(
    built: Any, gpt_world: World, tmp_path: Path, case: str, wrong: dict[str, Any]
) -> None:
    source, expected = built(case)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, **wrong}))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    found = megatron_difference(gpt_world, tmp_path / "nemo", expected)
    print(f"{case} {wrong}: {found:.2e}")
    assert found > 2e-4


@pytest.mark.parametrize("flavor", ["std", "genai"])
@pytest.mark.parametrize("case", ["baichuan", "chatglm", "chatglm-unbiased"])
def test_an_onnx_graph_computes_the_same(built: Any, tmp_path: Path, case: str, flavor: str) -> None:
    source, expected = built(case)
    convert(source, tmp_path / "onnx", to="onnx", dtype="float32", flavor=flavor)
    assert_onnx_agrees(tmp_path / "onnx", expected)
