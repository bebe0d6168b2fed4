"""Names of tensors as transformers' own savers and people's scripts leave them: what it loads is converted alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert

from ..golden import configs
from . import models

#: whose base class has all but the output layer, under ``base_model_prefix``
DECODERS = """deepseek_v2 deepseek_v3 ernie4_5 falcon gemma gemma2 gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt2
gpt_bigcode gpt_neox gpt_oss llama mamba2 mistral mixtral nemotron nemotron_h phi3 qwen2 qwen2_moe qwen3 qwen3_moe
seed_oss smollm3 stablelm starcoder2""".split()
#: for which transformers has another form of the file than that which it usually writes
OTHERWISE = """deepseek_v2 deepseek_v3 glm4_moe glm4_moe_lite gpt_neox mixtral nemotron_h qwen2_moe
qwen3_moe""".split()
#: with a copy of the output layer that its class never ties
NEVER_TIED = {"gpt_neox", "nemotron_h"}


def build(kind: str, folder: Path, **changes: Any) -> Any:
    """A model of transformers with random weights, saved in ``folder`` as it usually is."""
    import torch
    import transformers

    hf_class, given = configs.MODELS[kind]
    less = {"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in given else {}
    if "attention_head_dim" in given:  # which transformers calls head_dim
        less["head_dim"] = given["attention_head_dim"]
        given = {key: value for key, value in given.items() if key != "attention_head_dim"}
    told = {"model_type": kind, "pad_token_id": 0, "bos_token_id": 1, **given, **less, **changes}
    torch.manual_seed(0)
    model = getattr(transformers, hf_class)(transformers.AutoConfig.for_model(**told)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1) * 0.5)
    model.save_pretrained(folder)
    return model


def renamed(source: Path, target: Path, name: Callable[[str], str | None]) -> None:
    """A copy of a directory in which tensors have other names, or are left out."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for file in source.glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    pairs = [(name(old), tensor) for old, tensor in load_file(source / "model.safetensors").items()]
    save_file({new: tensor for new, tensor in pairs if new}, target / "model.safetensors", {"format": "pt"})


def logits(folder: Path) -> Any:
    import torch
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def same(variant: Path, usual: Path, folder: Path) -> list[str]:
    """transformers sees one model in both; converted, so do we. The notes of the conversion."""
    assert (
        logits(variant) - logits(usual)
    ).abs().max() < 1e-5  # matrices of other addresses add up otherwise
    report = convert(variant, folder / "ours", to="hf")
    convert(usual, folder / "theirs", to="hf")
    models.assert_same_tensors(folder / "ours", folder / "theirs")
    assert json.loads((folder / "ours" / "config.json").read_text()) == json.loads(
        (folder / "theirs" / "config.json").read_text()
    )
    return list(report.notes)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_model_without_its_prefix_and_with_its_output_layer(kind: str, tmp_path: Path) -> None:
    prefix = build(kind, tmp_path / "usual").base_model_prefix
    stored = "backbone" if kind == "nemotron_h" else prefix
    renamed(tmp_path / "usual", tmp_path / "flat", lambda name: name.removeprefix(stored + "."))
    notes = same(tmp_path / "flat", tmp_path / "usual", tmp_path)
    assert any("named otherwise than usual" in note for note in notes) or kind in SPELLED


#: whose tables spell names without a prefix themselves
SPELLED = {"gpt2"}


@pytest.mark.parametrize("kind", sorted(set(DECODERS) - NEVER_TIED))
def test_a_tied_model_saved_by_its_base_class(kind: str, tmp_path: Path) -> None:
    model = build(kind, tmp_path / "usual", tie_word_embeddings=True)
    model.base_model.save_pretrained(tmp_path / "base")
    named = json.loads((tmp_path / "base" / "config.json").read_text())["architectures"]
    assert named == [type(model.base_model).__name__]
    same(tmp_path / "base", tmp_path / "usual", tmp_path)


@pytest.mark.parametrize("kind", sorted(set(DECODERS) - NEVER_TIED))
def test_a_tied_model_that_kept_the_name_of_its_output_layer_only(kind: str, tmp_path: Path) -> None:
    model = build(kind, tmp_path / "usual", tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight
    names = [n for n, t in model.named_parameters(remove_duplicate=False) if t is embedding]
    assert len(names) == 2
    first, output = names
    renamed(tmp_path / "usual", tmp_path / "one", lambda name: output if name == first else name)
    same(tmp_path / "one", tmp_path / "usual", tmp_path)


@pytest.mark.parametrize("kind", OTHERWISE)
def test_the_form_that_transformers_has_in_memory(kind: str, tmp_path: Path) -> None:
    """Experts of a layer in one tensor, and modules by the names that they have there."""
    model = build(kind, tmp_path / "usual")
    model.save_pretrained(tmp_path / "memory", save_original_format=False)
    same(tmp_path / "memory", tmp_path / "usual", tmp_path)


def test_buffers_that_follow_from_the_config_are_left_out_and_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    build("qwen3_moe", tmp_path / "usual")
    renamed(tmp_path / "usual", tmp_path / "more", lambda name: name)
    held = load_file(tmp_path / "more" / "model.safetensors")
    held |= {f"model.layers.{n}.self_attn.rotary_emb.cos_cached": torch.ones(4) for n in range(2)}
    save_file(held, tmp_path / "more" / "model.safetensors", {"format": "pt"})
    notes = same(tmp_path / "more", tmp_path / "usual", tmp_path)
    assert [note for note in notes if "2 buffers that follow from the config are left out" in note]
