"""Dense decoders that are no Llama: transformers writes them, we convert them, transformers and megatron-core
load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert

from . import models
from .worlds import World

pytest.importorskip("transformers")

TOLERANCE = 2e-4  # float32; the largest logit is about 4
BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 130,
    "max_position_embeddings": 128,
    "initializer_range": 0.03,
}
ROPE = {"rope_type": "default", "rope_theta": 50000.0}
PARTIAL = {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}
WHOLE = {"rope_parameters": ROPE}
EPSILON = {"rms_norm_eps": 3e-5}
#: name -> (config class of transformers, its arguments). Texts have 32 tokens: a window of 9 is felt.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", {**WHOLE, **EPSILON, "sliding_window": None}),
    "mistral-window": ("MistralConfig", {**WHOLE, "sliding_window": 9, "head_dim": 24}),
    "qwen2": ("Qwen2Config", {**WHOLE, **EPSILON}),
    "qwen2-tied": ("Qwen2Config", {**WHOLE, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3Config", {**WHOLE, **EPSILON, "head_dim": 24}),
    "qwen3-tied": ("Qwen3Config", {**WHOLE, "head_dim": 16, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {**WHOLE, "pad_token_id": 0}),
    "phi3-partial": ("Phi3Config", {**PARTIAL, **EPSILON, "pad_token_id": 0, "sliding_window": 9}),
    "phi3-mha": ("Phi3Config", {**WHOLE, "pad_token_id": 0, "num_key_value_heads": 4}),
    "starcoder2": ("Starcoder2Config", {**WHOLE, "norm_epsilon": 3e-5, "sliding_window": 9}),
    "starcoder2-exact": (
        "Starcoder2Config",
        {**WHOLE, "hidden_act": "gelu", "tie_word_embeddings": False},
    ),
    "nemotron": ("NemotronConfig", {**PARTIAL, "norm_eps": 3e-5}),
    "nemotron-wide": ("NemotronConfig", {**WHOLE, "head_dim": 24, "num_key_value_heads": 4}),
    "gemma": ("GemmaConfig", {**WHOLE, **EPSILON, "head_dim": 32}),
    # NeMo's norms after attention and MLP have this epsilon, and a text is shorter than the window
    "gemma2": (
        "Gemma2Config",
        {
            **WHOLE,
            "rms_norm_eps": 1e-5,
            "head_dim": 32,
            "sliding_window": 64,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2-uncapped": (
        "Gemma2Config",
        {
            **WHOLE,
            "rms_norm_eps": 1e-5,
            "head_dim": 16,
            "num_key_value_heads": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
}
CASES |= {
    # four layers see back 9 tokens, every third sees all; NeMo's norms as in Gemma 2
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0},
            },
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "rms_norm_eps": 1e-5,
            "head_dim": 32,
            "sliding_window": 9,
            "query_pre_attn_scalar": 20,
        },
    ),
    "gemma3_text-plain": (
        "Gemma3TextConfig",
        {"rms_norm_eps": 1e-5, "head_dim": 16, "query_pre_attn_scalar": 16, "num_key_value_heads": 4},
    ),
}
ZERO_CENTRED = ("nemotron", "gemma")
#: says nothing of the mathematics, and comes back as the default
UNREAD = {
    "_name_or_path",
    "_sliding_window_pattern",
    "max_window_layers",
    "resid_pdrop",
    "embd_pdrop",
}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return models.directories(tmp_path_factory.mktemp("dense"), build, as_transformers_4)


def build(folder: Path, case: str) -> None:
    """A bfloat16 model with weights that keep activations and logits at order 1, so that all matter."""
    import torch
    import transformers

    name, changes = CASES[case]
    config = getattr(transformers, name)(**deepcopy({**BASE, **changes}))
    config.bos_token_id, config.eos_token_id = 1, 2
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if weight.endswith("bias") or (p.ndim == 1 and case.startswith(ZERO_CENTRED)):
                noise *= 0.3
            elif p.ndim == 1:
                noise = 1 + 0.3 * noise
            elif "embed" not in weight:
                noise *= 1.5 / p.shape[1] ** 0.5
            elif config.tie_word_embeddings:
                noise *= p.shape[1] ** -0.5
            p.copy_(noise)
    model.save_pretrained(folder)


def as_transformers_4(file: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it."""
    written = json.loads(file.read_text())
    rope = written.pop("rope_parameters")
    if "full_attention" in rope:
        written["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        kinds = written["layer_types"]
        written["sliding_window_pattern"] = kinds.index("full_attention") + 1 if len(set(kinds)) > 1 else 6
    written["rope_theta"], written["rope_scaling"] = rope["rope_theta"], None
    if "factor" in rope:
        written["rope_scaling"] = {"rope_type": rope["rope_type"], "factor": rope["factor"]}
    if "partial_rotary_factor" in rope:
        written["partial_rotary_factor"] = rope["partial_rotary_factor"]
    written["torch_dtype"] = written.pop("dtype")
    written.pop("layer_types", None)
    written["transformers_version"] = "4.53.3"
    file.write_text(json.dumps(written, indent=2))


def tokens() -> Any:
    return models.ids(BASE["vocab_size"], 32)


def logits(folder: Path, dtype: str = "auto") -> Any:
    import torch

    with torch.no_grad():
        return models.load(folder, dtype)(tokens()).logits


def as_transformers_reads(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in found.items() if key not in UNREAD}


@pytest.mark.parametrize("style", [4, 5])
@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_model(
    hf: Callable[..., Path], tmp_path: Path, case: str, style: int
) -> None:
    source, expected = hf(case, style), logits(hf(case, 5))
    assert 1 < expected.abs().max() < 40
    for tp in (1, 2):
        nemo, back = tmp_path / f"nemo{tp}", tmp_path / f"back{tp}"
        convert(source, nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(source, back)
        if tp == 1:
            assert logits(back).equal(expected)
            theirs = as_transformers_reads(hf(case, 5))
            ours = as_transformers_reads(back)
            assert {key: ours.get(key) for key in theirs} == theirs
    assert (tmp_path / "back1/config.json").read_bytes() == (tmp_path / "back2/config.json").read_bytes()


@pytest.fixture(scope="module")
def dense_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Processes for Megatron jobs with these architectures."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    script = Path(__file__).with_name("megatron_dense_rank.py")
    ranks = World(tmp_path_factory.mktemp("dense_world") / "stderr", script)
    yield ranks
    ranks.close()


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("mistral-window", {"sliding_window": 10}),
        ("phi3-partial", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.75}}),
        ("starcoder2", {"hidden_act": "gelu"}),
        ("nemotron", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}),
        ("qwen3", {"rms_norm_eps": 1e-2}),
        ("gemma", {"rms_norm_eps": 1e-2}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("gemma2", {"attn_logit_softcapping": 2.5}),
        ("gemma2", {"final_logit_softcapping": 3.5}),
        ("gemma3_text", {"sliding_window": 10}),
        ("gemma3_text", {"query_pre_attn_scalar": 32}),
    ],
)
def test_a_config_that_is_a_little_wrong_is_felt(
    hf: Callable[..., Path], dense_world: World, tmp_path: Path, case: str, wrong: dict[str, Any]
) -> None:
    import torch

    torch.save({"ids": tokens(), "logits": logits(hf(case), "float32")}, tmp_path / "reference.pt")
    shutil.copytree(hf(case), tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, **wrong}))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    (found,) = dense_world.run(
        "compare", directory=str(tmp_path / "nemo"), reference=str(tmp_path / "reference.pt"), tp=1, pp=1
    )
    print(f"{case} {wrong}: {found['diff']:.2e}")
    assert found["diff"] > TOLERANCE


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_megatron_core_computes_the_same(
    hf: Callable[..., Path], dense_world: World, tmp_path: Path, case: str, tp: int
) -> None:
    import torch

    source, nemo = hf(case), tmp_path / "nemo"
    expected = logits(source, "float32")
    torch.save({"ids": tokens(), "logits": expected}, tmp_path / "reference.pt")
    convert(source, nemo, to="nemo2", tensor_parallel_size=tp)
    reference = str(tmp_path / "reference.pt")
    for found in dense_world.run("compare", directory=str(nemo), reference=reference, tp=tp, pp=1):
        print(f"{case} tp{tp}: {found['diff']:.2e} of {expected.abs().max():.1f}")
        assert found["diff"] <= TOLERANCE
        assert found["argmax_equal"]
