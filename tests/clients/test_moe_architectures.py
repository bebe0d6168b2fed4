"""Mixtures of experts: transformers writes them, we convert them, transformers and megatron-core load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert

from . import models
from .worlds import World

pytest.importorskip("transformers")

TOLERANCE = 2e-4  # float32; measured: 2e-5
BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
#: name -> (config class of transformers, its arguments)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**BASE, **ROPE, "num_local_experts": 4}),
    "mixtral-tied-topk3": (
        "MixtralConfig",
        {
            **BASE,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
            "head_dim": 24,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **BASE,
            **ROPE,
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe-unnormalized": (
        "Qwen3MoeConfig",
        {**BASE, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **BASE,
            **ROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
    ),
    "qwen2_moe-normalized-unbiased": (
        "Qwen2MoeConfig",
        {
            **BASE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
}

LATENT = {
    **BASE,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "n_routed_experts": 8,
    "moe_intermediate_size": 48,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
V3 = {**LATENT, "q_lora_rank": 24, "num_mtp_layers": 0}
CASES |= {
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **V3,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        },
    ),
    "deepseek_v3-plain": (
        "DeepseekV3Config",
        {**V3, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "q_lora_rank": None},
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {
            **LATENT,
            "q_lora_rank": None,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.5,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v2-low-rank-grouped": (
        "DeepseekV2Config",
        {
            **LATENT,
            "q_lora_rank": 24,
            "num_experts_per_tok": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 0,
            "rope_parameters": YARN,
        },
    ),
}


SINKS = {
    **BASE,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
    "pad_token_id": None,
    "eos_token_id": None,
}
STRETCHED = {**YARN, "original_max_position_embeddings": 512, "truncate": False}
CHUNKS = {
    **BASE,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "intermediate_size_mlp": 96,
    "head_dim": 16,
    "num_local_experts": 4,
    "attn_temperature_tuning": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
CASES |= {
    "gpt_oss": (
        "GptOssConfig",
        {**SINKS, "swiglu_limit": 1.5, "rope_parameters": STRETCHED},
    ),
    "gpt_oss-plain": (
        "GptOssConfig",
        {**SINKS, **ROPE, "num_key_value_heads": 4, "num_hidden_layers": 4, "num_experts_per_tok": 3},
    ),
    "gpt_oss-truncated": (
        "GptOssConfig",
        {**SINKS, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}},
    ),
    "llama4_text": (
        "Llama4TextConfig",
        {**CHUNKS, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2},
    ),
    "llama4_text-every-layer": (
        "Llama4TextConfig",
        {**CHUNKS, "use_qk_norm": True, "num_key_value_heads": 4, "no_rope_layer_interval": 4},
    ),
    "llama4_text-unnormed": (
        "Llama4TextConfig",
        {**CHUNKS, "use_qk_norm": False, "moe_layers": [1, 2], "no_rope_layer_interval": 3},
    ),
}

GLM = {
    **BASE,
    "num_hidden_layers": 4,
    "n_routed_experts": 8,
    "moe_intermediate_size": 48,
    "num_mtp_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5},
}
CASES |= {
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            **GLM,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.7,
            "head_dim": 24,
            "attention_bias": True,
            "use_qk_norm": True,
        },
    ),
    "glm4_moe-grouped": (
        "Glm4MoeConfig",
        {**GLM, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 2},
    ),
}


LITE = {key: value for key, value in LATENT.items() if key != "first_k_dense_replace"}
CASES |= {
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig",
        {
            **LITE,
            "q_lora_rank": 24,
            "num_experts_per_tok": 3,
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        },
    ),
}


def build(folder: Path, case: str) -> Path:
    """Save a random model whose activations, router logits and logits are of order 1."""
    import torch
    import transformers

    name, arguments = CASES[case]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**arguments)).float()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if key.endswith("bias"):
                noise *= 0.3
            elif p.ndim == 1:
                noise = 1 + 0.3 * noise
            elif "embed" not in key or arguments.get("tie_word_embeddings"):
                noise *= 1.5 / p.shape[-1] ** 0.5
            p.copy_(noise)
        for key, b in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                b.copy_(0.1 * torch.randn(b.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Hugging Face directories of the cases, each built once. Not to be changed."""
    root, built = tmp_path_factory.mktemp("moe"), dict[str, Path]()

    def directory(case: str) -> Path:
        if case not in built:
            built[case] = build(root / case, case)
        return built[case]

    return directory


@pytest.fixture(scope="module")
def moe_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    script = Path(__file__).with_name("megatron_moe_rank.py")
    ranks = World(tmp_path_factory.mktemp("world") / "stderr", script)
    yield ranks
    ranks.close()


@pytest.fixture
def judge(moe_world: World, tmp_path: Path) -> Callable[..., float]:
    """judge(nemo, hf, tp, pp, ep): the distance of megatron-core's logits from those of transformers."""

    def distance(nemo: Path, hf: Path, tp: int = 1, pp: int = 1, ep: int = 1) -> float:
        import torch

        with open_checkpoint(nemo) as opened:
            etp = opened.layout.expert_tensor_parallel_size

        logits = models.logits(hf, "float32")
        assert 1 < logits.abs().max() < 30
        reference = tmp_path / "reference.pt"
        torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, reference)
        answers = moe_world.run(
            "compare_moe", directory=str(nemo), reference=str(reference), tp=tp, pp=pp, ep=ep, etp=etp
        )
        return max(answer["diff"] for answer in answers if "diff" in answer)

    return distance


Moe = Callable[[str], Path]
Judge = Callable[..., float]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (1, 2, 2)], ids=str)
def test_there_and_back_through_nemo_2(
    moe: Moe, tmp_path: Path, case: str, layout: tuple[int, int, int]
) -> None:
    source, nemo, back = moe(case), tmp_path / "nemo", tmp_path / "back"
    tp, pp, ep = layout
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "expert_parallel_size": ep}
    convert(source, nemo, to="nemo2", verify=True, **sizes)
    convert(nemo, back, to="hf", verify=True)
    models.assert_same_tensors(source, back)
    assert models.logits(back).equal(models.logits(source))
    before, after = (models.load(folder).config.to_dict() for folder in (source, back))
    assert {key: after.get(key) for key in before if key not in LOST} == {
        key: before[key] for key in before if key not in LOST
    }


#: what config.json says in another way, or does not say of a model
LOST = {"_name_or_path", "sliding_window", "max_window_layers", "head_dim"}


@pytest.mark.parametrize("case", CASES)
def test_megatron_core_computes_what_transformers_computes(
    moe: Moe, judge: Judge, tmp_path: Path, case: str
) -> None:
    convert(moe(case), tmp_path / "nemo", to="nemo2")
    difference = judge(tmp_path / "nemo", moe(case))
    print(f"{case}: {difference:.1e}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if "-" not in case])
@pytest.mark.parametrize("layout", [(2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
def test_megatron_core_computes_the_same_at_other_layouts(
    moe: Moe, judge: Judge, tmp_path: Path, case: str, layout: tuple[int, int, int]
) -> None:
    tp, pp, ep = layout
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "expert_parallel_size": ep}
    convert(moe(case), tmp_path / "nemo", to="nemo2", **sizes)
    assert judge(tmp_path / "nemo", moe(case), *layout) < TOLERANCE


WRONG = {
    "experts": ("mixtral", "block_sparse_moe.experts.0.w2.weight", "block_sparse_moe.experts.3.w2.weight"),
    "gate and up": (
        "mixtral",
        "block_sparse_moe.experts.1.w1.weight",
        "block_sparse_moe.experts.1.w3.weight",
    ),
    "router": ("mixtral", "block_sparse_moe.gate.weight", None),
    "shared expert": ("qwen2_moe", "mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
    "shared gate": ("qwen2_moe", "mlp.shared_expert_gate.weight", None),
    "norms of heads": ("qwen3_moe", "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    "correction of the router": ("deepseek_v3", "mlp.gate.e_score_correction_bias", None),
    "latent": ("deepseek_v3", "self_attn.kv_a_proj_with_mqa.weight", None),
    "norm of the latent": ("deepseek_v3", "self_attn.kv_a_layernorm.weight", None),
    "sinks": ("gpt_oss", "self_attn.sinks", None),
    "gate and up that alternate": ("gpt_oss", "mlp.experts.gate_up_proj", None),
    "biases of experts": ("gpt_oss", "mlp.experts.down_proj_bias", None),
    "bias of the router": ("gpt_oss", "mlp.router.bias", None),
    "stacked experts": ("llama4_text", "feed_forward.experts.down_proj", None),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_judge_sees_weights_in_the_wrong_place(moe: Moe, judge: Judge, tmp_path: Path, what: str) -> None:
    """Two tensors of a layer exchanged, or one whose rows are turned by one."""
    import safetensors.torch

    case, first, second = WRONG[what]
    source, tensors = tmp_path / "hf", safetensors.torch.load_file(moe(case) / "model.safetensors")
    first = f"model.layers.1.{first}"
    if second is None:
        tensors[first] = tensors[first].roll(1, -1)
    else:
        second = f"model.layers.1.{second}"
        tensors[first], tensors[second] = tensors[second], tensors[first]
    source.mkdir()
    safetensors.torch.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_bytes((moe(case) / "config.json").read_bytes())
    convert(source, tmp_path / "nemo", to="nemo2")
    assert judge(tmp_path / "nemo", moe(case)) > 50 * TOLERANCE


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("gpt_oss", {"sliding_window": 6}),
        ("gpt_oss", {"swiglu_limit": 2.0}),
        ("gpt_oss", {"rope_parameters": {**STRETCHED, "truncate": True}}),
        ("gpt_oss", {"rope_parameters": {**STRETCHED, "mscale": 1.0, "mscale_all_dim": 1.0}}),
        ("gpt_oss", {"rope_parameters": {**STRETCHED, "original_max_position_embeddings": 16384}}),
        ("gpt_oss", {"num_experts_per_tok": 3}),
        ("llama4_text", {"use_qk_norm": False}),
        ("llama4_text", {"no_rope_layers": [1, 1, 1, 1], "layer_types": None}),
        ("glm4_moe", {"routed_scaling_factor": 1.6}),
        ("glm4_moe", {"rope_parameters": {**GLM["rope_parameters"], "partial_rotary_factor": 0.75}}),
        ("glm4_moe-grouped", {"n_group": 1, "topk_group": 1}),
    ],
    ids=str,
)
def test_the_judge_feels_a_config_that_is_a_little_wrong(
    moe: Moe, judge: Judge, tmp_path: Path, case: str, wrong: dict[str, Any]
) -> None:
    """Among them what NeMo's own importers of gpt-oss get wrong: the window and the stretch of attention."""
    source = tmp_path / "hf"
    shutil.copytree(moe(case), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **wrong}))
    convert(source, tmp_path / "nemo", to="nemo2")
    difference = judge(tmp_path / "nemo", moe(case))
    print(f"{case} {wrong}: {difference:.1e}")
    assert difference > 5 * TOLERANCE


def as_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the spelling of transformers 4."""
    older = {**config, "torch_dtype": config["dtype"], "transformers_version": "4.53.3"}
    del older["dtype"]
    rope = dict(older.pop("rope_parameters"))
    older["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    scaled = rope["rope_type"] != "default"
    older["rope_scaling"] = {("type" if "n_group" in older else "rope_type"): rope.pop("rope_type"), **rope}
    if not scaled and older["model_type"] != "gpt_oss":  # where none means yarn
        older["rope_scaling"] = None
    if older["model_type"] != "deepseek_v2":  # whose two generations have other experts
        older.pop("num_experts" if older["model_type"] == "mixtral" else "layer_types", None)
    return older


@pytest.mark.parametrize("case", [case for case in CASES if "-" not in case])
def test_configs_of_transformers_4_mean_the_same(moe: Moe, tmp_path: Path, case: str) -> None:
    older = tmp_path / "older"
    shutil.copytree(moe(case), older)
    config = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps(as_transformers_4(config)))
    for source, target in ((moe(case), "nemo-5"), (older, "nemo-4")):
        convert(source, tmp_path / target, to="nemo2")
    for name in ("context/io.json", "weights/.metadata", "weights/__0_0.distcp"):
        assert (tmp_path / "nemo-4" / name).read_bytes() == (tmp_path / "nemo-5" / name).read_bytes()
