"""What other converters get wrong without a word, each as a test of ours: converted, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, LayoutError, MappingError, NemoconvError, UnsupportedConfig
from nemoconv.formats.safetensors import emit_header
from nemoconv.mappings import load_table, samples
from nemoconv.testing import data_of

SIZES: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "torch_dtype": "bfloat16",
}


def config(architecture: str, **changes: Any) -> dict[str, Any]:
    hf_class = load_table(architecture).hf_class
    return {"model_type": architecture, "architectures": [hf_class], **SIZES, **changes}


def there_and_back(tmp_path: Path, source_config: Mapping[str, Any], name: str = "source") -> dict[str, Any]:
    """The config.json that comes back from NeMo 2, where the weights are equal and nothing else is left
    to tell what they were: the manifest is removed on the way."""
    source, nemo, back = tmp_path / name, tmp_path / "nemo", tmp_path / "back"
    samples.build(source, source_config)
    convert(source, nemo, to="nemo2")
    (nemo / "nemoconv_manifest.json").unlink()
    convert(nemo, back, to="hf")
    assert data_of(source) == data_of(back)
    written: dict[str, Any] = json.loads((back / "config.json").read_text())
    return written


def nemo_config(tmp_path: Path, source_config: Mapping[str, Any]) -> str:
    samples.build(tmp_path / "source", source_config)
    convert(tmp_path / "source", tmp_path / "nemo", to="nemo2")
    return (tmp_path / "nemo" / "context" / "model.yaml").read_text()


def test_mixtral_routes_with_a_softmax_after_the_choice(tmp_path: Path) -> None:
    """mbridge: before the choice; logits are 0.53 off."""
    text = nemo_config(tmp_path, config("mixtral", num_local_experts=4, num_experts_per_tok=2))
    assert "moe_router_pre_softmax: false" in text


def test_starcoder2_keeps_its_gelu_window_and_head(tmp_path: Path) -> None:
    """NeMo 2: another GELU, the window forgotten, the head untied by force."""
    written = there_and_back(tmp_path, config("starcoder2", sliding_window=20, tie_word_embeddings=True))
    assert written["hidden_act"] == "gelu_pytorch_tanh"
    assert written["sliding_window"] == 20
    assert written["tie_word_embeddings"] is True


def test_phi3_keeps_groups_vocabulary_and_epsilon(tmp_path: Path) -> None:
    """NeMo 2: the first two are dropped on import, the third is fixed on export."""
    written = there_and_back(tmp_path, config("phi3", rms_norm_eps=3e-4))
    assert (written["num_key_value_heads"], written["vocab_size"], written["rms_norm_eps"]) == (2, 67, 3e-4)


HYBRID: Mapping[str, Any] = {
    "hybrid_override_pattern": "M-*",
    "num_hidden_layers": 3,
    "attention_head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 4,
    "ssm_state_size": 10,
}


def test_a_nemotron_h_of_any_name_and_spelling_is_read(tmp_path: Path) -> None:
    """NeMo 2 takes its config from the path, Megatron-Bridge knows one name of the embedding only."""
    written = there_and_back(tmp_path, config("nemotron_h", **HYBRID), "nemotronh-8B-mixtral")
    assert (written["mamba_num_heads"], written["n_groups"], written["ssm_state_size"]) == (8, 4, 10)
    source, names = tmp_path / "nemotronh-8B-mixtral", ("backbone.embedding.", "backbone.embeddings.")
    held = data_of(source)
    (stored,) = (name for name in names if name + "weight" in held)
    other = names[1 - names.index(stored)]
    rewrite(source, lambda held: {name.replace(stored, other): tensor for name, tensor in held.items()})
    assert other + "weight" in data_of(source)
    convert(source, tmp_path / "other", to="nemo2")
    assert data_of(tmp_path / "other") == data_of(tmp_path / "nemo")


def test_gpt_oss_keeps_more_of_its_config_than_layers_and_experts(tmp_path: Path) -> None:
    """NeMo 2's importer reads those and the dtype, and takes the rest from the released models."""
    said = {"head_dim": 16, "rms_norm_eps": 3e-4, "sliding_window": 20, "swiglu_limit": 5.0}
    routed = {"num_local_experts": 4, "num_experts_per_tok": 3}
    stretched = {"factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "original_max_position_embeddings": 64}
    rope = {"rope_type": "yarn", "rope_theta": 7e4, "truncate": False, **stretched}
    written = there_and_back(tmp_path, config("gpt_oss", **said, **routed, rope_parameters=rope))
    assert {key: written[key] for key in {**said, **routed}} == {**said, **routed}
    assert {key: written["rope_parameters"][key] for key in rope} == rope


@pytest.mark.parametrize("name", ["mixtral-8x22b", "nemotronh-56B-llama-2-70b"])
def test_a_config_comes_from_the_checkpoint_not_from_its_path(tmp_path: Path, name: str) -> None:
    """NeMo 2 picks some configs by a substring of the path."""
    written = there_and_back(tmp_path, config("mixtral", num_local_experts=4, rope_theta=7.0), name)
    assert (written["model_type"], written["hidden_size"], written["num_local_experts"]) == ("mixtral", 32, 4)


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    """NeMo 2's gpt-oss importer logs it and goes on."""
    samples.build(tmp_path / "one", config("llama"))
    convert(tmp_path / "one", tmp_path / "many", to="hf", max_shard_nbytes=8000)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(CorruptCheckpoint, match=f"missing: {shards[1].name}"):
        convert(tmp_path / "many", tmp_path / "nemo", to="nemo2")
    assert not (tmp_path / "nemo").exists()


def test_gemma_norms_are_stored_as_they_are(tmp_path: Path) -> None:
    """NeMo 1 adds 1 to bfloat16 norm weights, which rounds them."""
    there_and_back(tmp_path, config("gemma", head_dim=16))
    with open_checkpoint(tmp_path / "source") as hf, open_checkpoint(tmp_path / "nemo") as nemo:
        name = "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight"
        assert nemo.read(name).tobytes() == hf.read("model.layers.1.input_layernorm.weight").tobytes()


def test_llama3_rope_keeps_all_its_numbers(tmp_path: Path) -> None:
    """Megatron-Bridge: exports 1, 4 and 8192 whatever they were, and drops others on import."""
    scaling = {
        "rope_type": "llama3",
        "factor": 5.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 64,
    }
    written = there_and_back(tmp_path, config("llama", rope_scaling=scaling, rope_theta=5e5))
    assert {key: written["rope_scaling"][key] for key in scaling} == scaling


def test_llama_biases_are_carried(tmp_path: Path) -> None:
    """Megatron-Bridge maps none of them."""
    written = there_and_back(tmp_path, config("llama", attention_bias=True, mlp_bias=True))
    assert written["attention_bias"] is written["mlp_bias"] is True


def test_the_output_holds_only_what_its_index_names(tmp_path: Path) -> None:
    """mbridge leaves a file per tensor."""
    samples.build(tmp_path / "source", config("llama"))
    convert(tmp_path / "source", tmp_path / "out", to="hf", max_shard_nbytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {p.name for p in (tmp_path / "out").glob("*.safetensors")} == set(index["weight_map"].values())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("llama", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "ntk"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"quantization_config": {"quant_method": "unheard-of"}}, "quantization_config|unheard-of"),
        (
            "qwen3_moe",
            {"num_experts": 4, "moe_intermediate_size": 8, "mlp_only_layers": [0]},
            "mlp_only_layers",
        ),
        (
            "qwen2_moe",
            {"num_experts": 4, "moe_intermediate_size": 8, "mlp_only_layers": [1]},
            "mlp_only_layers",
        ),
        ("llama", {"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config"),
        ("llama", {"attention_chunk_size": 64}, "attention_chunk_size"),
    ],
)
def test_mathematics_without_a_counterpart_is_refused(
    tmp_path: Path, architecture: str, changes: Mapping[str, Any], named: str
) -> None:
    plain = {key: value for key, value in changes.items() if "expert" in key or "moe" in key}
    samples.build(tmp_path / "source", config(architecture, **plain))
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UnsupportedConfig, match=named):
        convert(tmp_path / "source", tmp_path / "out", to="nemo2")
    assert not (tmp_path / "out").exists()


def rewrite(folder: Path, change: Any) -> None:
    """Write the sample again with other tensors: ``change`` gets and returns name -> (shape, bytes)."""
    with open_checkpoint(folder) as checkpoint:
        specs = {name: checkpoint.spec(name) for name in checkpoint.keys()}  # noqa: SIM118
        held = {name: (spec.shape, checkpoint.read(name).tobytes()) for name, spec in specs.items()}
    dtype = next(iter(specs.values())).dtype
    changed: dict[str, tuple[tuple[int, ...], bytes]] = change(held)
    named = [(name, dtype, shape) for name, (shape, _) in changed.items()]
    data = b"".join(raw for _, raw in changed.values())
    (folder / "model.safetensors").write_bytes(emit_header(named)[0] + data)


NORM = "model.norm.weight"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("changes", "change", "error", "named"),
    [
        ({}, lambda held: {**held, "model.strange.weight": held[NORM]}, MappingError, "model.strange.weight"),
        ({}, lambda held: {k: v for k, v in held.items() if k != NORM}, NemoconvError, NORM),
        (
            {"attention_bias": True},
            lambda held: {k: v for k, v in held.items() if "bias" not in k},
            NemoconvError,
            "bias",
        ),
        (
            {"tie_word_embeddings": True},
            lambda held: {**held, HEAD: (held[EMBEDDING][0], held[EMBEDDING][1][::-1])},
            NemoconvError,
            HEAD,
        ),
    ],
    ids=["left over", "missing", "bias flag without biases", "another head under a tied config"],
)
def test_every_tensor_is_accounted_for(
    tmp_path: Path, changes: Mapping[str, Any], change: Any, error: type[NemoconvError], named: str
) -> None:
    samples.build(tmp_path / "source", config("llama", **changes))
    rewrite(tmp_path / "source", change)
    with pytest.raises(error, match=named):
        convert(tmp_path / "source", tmp_path / "out", to="nemo2")
    assert not (tmp_path / "out").exists()


def test_up_to_ten_names_are_listed_in_both_directions(tmp_path: Path) -> None:
    """Of tensors without a rule, and of rules without a tensor: four biases of each of three layers."""
    biased = {"attention_bias": True, "mlp_bias": True}
    for name, changes in (("plain", {}), ("biased", biased)):
        samples.build(tmp_path / name, config("llama", num_hidden_layers=3, **changes))
        convert(tmp_path / name, tmp_path / f"{name}-nemo", to="nemo2")
    for source, other, says in (
        ("biased-nemo", "plain", r"12 tensors have no rule in the 'llama' table: .* and 2 more"),
        ("plain-nemo", "biased", r"12 tensors that 'llama' needs are missing: .* and 2 more"),
        ("biased", "plain", r"21 tensors have no rule in the 'llama' table: .* and 11 more"),
        ("plain", "biased", r"21 tensors that 'llama' needs are missing: .* and 11 more"),
    ):
        weights = source
        if source.endswith("nemo"):  # the weights alone, to be read with the other's config
            weights = f"{source}-weights"
            shutil.copytree(tmp_path / source / "weights", tmp_path / weights / "weights")
        with pytest.raises(MappingError, match=says) as caught:
            convert(tmp_path / weights, tmp_path / "out", to="hf", config=tmp_path / other)
        assert caught.value.message.count(".bias") == 10
        assert not (tmp_path / "out").exists()


def test_an_equal_head_under_a_tied_config_is_the_embedding(tmp_path: Path) -> None:
    samples.build(tmp_path / "source", config("llama", tie_word_embeddings=True))
    rewrite(tmp_path / "source", lambda held: {**held, HEAD: held[EMBEDDING]})
    convert(tmp_path / "source", tmp_path / "out", to="nemo2")
    assert verify(tmp_path / "source", tmp_path / "out").equal


def test_groups_that_cannot_be_cut_are_refused_with_the_sizes_that_can(tmp_path: Path) -> None:
    samples.build(
        tmp_path / "source", config("llama", num_attention_heads=6, num_key_value_heads=3, head_dim=8)
    )
    with pytest.raises(LayoutError, match=r"num_query_groups=3.*: 1, 3; that share its heads: 6$"):
        convert(tmp_path / "source", tmp_path / "out", to="nemo2", tensor_parallel_size=2)
