"""Every dialect of experts in torch_dist has the same logical names; one is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.torch_dist import names as nemo2_names
from nemoconv.converters.torch_dist.names import StoredKey, leading_axes, logical_name, stored_key
from nemoconv.mappings import samples
from nemoconv.testing import data_of

EXPERT = "decoder.layers.7.mlp.experts.local_experts.3.linear_fc1.weight"
DIALECTS = {
    "decoder.layers.mlp.experts.experts.linear_fc1.weight": (7, 3),
    "decoder.layers.7.mlp.experts.experts.linear_fc1.weight": (3,),
    "decoder.layers.mlp.experts.experts.3.linear_fc1.weight": (7,),
    "decoder.layers.7.mlp.experts.experts.3.linear_fc1.weight": (),
    "decoder.layers.7.mlp.experts.local_experts.3.linear_fc1.weight": (),
    "decoder.layers.7.mlp.experts.linear_fc1.weight3": (),
    "decoder.layers.mlp.experts.linear_fc1.weight3": (7,),
}
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "vocab_size": 32,
}


@pytest.mark.parametrize("key", DIALECTS)
def test_all_are_read(key: str) -> None:
    assert leading_axes(key) == len(DIALECTS[key])
    assert logical_name(key, DIALECTS[key]) == EXPERT


def test_one_is_written() -> None:
    assert stored_key(EXPERT, stacked=True) == StoredKey(next(iter(DIALECTS)), (7, 3))
    assert stored_key(EXPERT, stacked=False) == StoredKey(list(DIALECTS)[1], (3,))


@pytest.mark.parametrize(
    "name", ["decoder.layers.7.mlp.linear_fc1.weight", "decoder.layers.7.mlp.router.weight", "a.weight1"]
)
def test_other_names_are_left_alone(name: str) -> None:
    assert logical_name(name, ()) == name


def grouped(name: str) -> str:
    """``local_experts.3.linear_fc1.weight`` as ``linear_fc1.weight3``."""
    return re.sub(r"local_experts\.(\d+)\.(linear_fc\d\.weight)", r"\2\1", name)


def one_by_one(name: str) -> str:
    return name.replace(".local_experts.", ".experts.")


@pytest.mark.parametrize("spelled", [str, one_by_one, grouped], ids=["sequential", "one by one", "grouped"])
def test_a_checkpoint_in_another_dialect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: Callable[[str], str]
) -> None:
    """A key for each expert of each layer, written by a writer that is told so."""
    samples.build(tmp_path / "hf", CONFIG)

    def key(name: str, *, stacked: bool) -> StoredKey:
        return (
            StoredKey(spelled(name), ()) if ".local_experts." in name else stored_key(name, stacked=stacked)
        )

    with monkeypatch.context() as patch:
        patch.setattr(nemo2_names, "stored_key", key)
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with open_checkpoint(tmp_path / "nemo") as nemo:
        stored = nemo._metadata.tensors  # type: ignore[attr-defined]
    assert "module." + spelled("decoder.layers.1.mlp.experts.local_experts.7.linear_fc1.weight") in stored
    assert verify(tmp_path / "nemo", tmp_path / "hf").equal
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "back") == data_of(tmp_path / "hf")
