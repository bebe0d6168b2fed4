"""Every architecture that NeMo 1 can be told to be, there and back."""

from __future__ import annotations

import legacy_nemo as legacy
import pytest
import tiny

from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedArchitecture
from nemoconv.mappings import load_table, samples
from nemoconv.mappings.hf.fields import read_config

pytest.importorskip("torch")


COMMON = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GROUPED = {**COMMON, "num_key_value_heads": 2, "vocab_size": 40}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
PLAIN = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 16, "vocab_size": 40}
ARCHITECTURES = {
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "phi3": GROUPED,
    "nemotron": {**GROUPED, "head_dim": 8},
    "starcoder2": GROUPED,
    "glm": {**GROUPED, "head_dim": 8},
    "gpt2": PLAIN,
    "gpt_bigcode": PLAIN,
    "gpt_neox": {**COMMON, "vocab_size": 40, "use_parallel_residual": False},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
}


@pytest.mark.parametrize("rank_files", [False, True], ids=["torch_dist", "rank files"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_there_and_back(tmp_path, architecture, rank_files):
    table = load_table(architecture)
    config = {"model_type": architecture, "architectures": [table.hf_class], "torch_dtype": "bfloat16"}
    config |= ARCHITECTURES[architecture]
    model_config, _ = read_config(table.fields, config)
    sizes = table.sizes(model_config)
    shapes = {
        part.hf.format(**instance.index): part.shape(sizes)
        for instance in table.instances(model_config, sizes)
        for part in instance.rule.parts
    }
    arrays = {name: tiny.bits(shape, "bfloat16", seed) for seed, (name, shape) in enumerate(shapes.items())}
    tiny.write(tmp_path / "hf", config, arrays=arrays)
    tp = 1 if architecture == "gpt_bigcode" else 2  # which has one query group only
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": 2, "rank_files": rank_files}
    report = convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    assert "no tokenizer" in report.notes[0]
    back = convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    assert back.architecture == architecture
    legacy.assert_holds(tmp_path / "back", arrays)
    assert verify(tmp_path / "hf", tmp_path / "back").equal


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe"])
def test_norms_of_q_and_k_need_the_spec_that_heeds_them(tmp_path, architecture):
    """NeMo 1's usual layer spec builds them for no model, and would load the rest without a word."""
    config = {"model_type": architecture, "architectures": [load_table(architecture).hf_class]}
    samples.build(tmp_path / "hf", {**config, **ARCHITECTURES[architecture]})
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        assert checkpoint.yaml["name"] == "decoder_block_gpt"
        assert checkpoint.yaml["qk_layernorm"] is True


def test_experts_that_are_shared_through_a_gate_are_not_for_nemo_1(tmp_path):
    config = {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]}
    samples.build(tmp_path / "hf", {**config, **EXPERTS, "shared_expert_intermediate_size": 16})
    with pytest.raises(UnsupportedArchitecture, match="qwen2_moe"):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
