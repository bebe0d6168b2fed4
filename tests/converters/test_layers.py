"""Some layers of a model as a model of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

import nemoconv
from nemoconv.converters.layers import parse_layers
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import UnsupportedConfig, UsageError
from nemoconv.formats.torch import dist as torch_dist
from nemoconv.mappings import samples
from nemoconv.stores.files import SourceDir

REAL = Path(__file__).parents[2] / "fixtures" / "nemo2"


def numbers(text):
    return list(parse_layers(text))


def test_lists_of_layers():
    assert numbers("0-3") == [0, 1, 2, 3]
    assert numbers("1, 3-4,8") == [1, 3, 4, 8]


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,1", "4,2", "0-9999999", "-1", "1-"])
def test_what_is_no_list_of_layers(text):
    with pytest.raises(UsageError):
        parse_layers(text)


@pytest.mark.parametrize(
    ("asked", "old"),
    [
        ({"layers": "1-2"}, [1, 2]),
        ({"layers": "0,3"}, [0, 3]),
        ({"stage": 1, "pipeline_parallel_size": 2}, [2, 3]),
        ({"stage": 0, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}, [0, 2]),
    ],
)
def test_the_layers_become_a_model(tmp_path, asked, old):
    """Against the Hugging Face tensors of the same layers, renumbered by hand."""
    bits = tiny.write(tmp_path / "hf", num_hidden_layers=4)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    report = reshard(tmp_path / "nemo", tmp_path / "a", **asked, tensor_parallel_size=2, verify=True)
    assert report.notes == [
        f"2 of 4 layers, numbered from 0: {'-'.join(map(str, old)) if old[1] == old[0] + 1 else ', '.join(map(str, old))}"
    ]
    convert(tmp_path / "a", tmp_path / "back", to="hf")
    expected = {}
    for name, array in bits.items():
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) not in old:
                continue
            parts[2] = str(old.index(int(parts[2])))
        expected[".".join(parts)] = array.tobytes()
    assert {name: array.tobytes() for name, array in tiny.load(tmp_path / "back").items()} == expected
    assert json.loads((tmp_path / "back/config.json").read_text())["num_hidden_layers"] == 2
    assert nemoconv.verify(tmp_path / "a").manifest
    objects = torch_dist.read_metadata(SourceDir(tmp_path / "a"), "weights").objects
    shards = {name.rpartition("/")[2] for name in objects}
    assert shards == {"shard_0_2", "shard_1_2", "shard_0_1"}


def test_a_directory_of_nemo_s_own(tmp_path):
    reshard(REAL / "nemo_tp1pp1", tmp_path / "a", layers="1-2")
    with open_checkpoint(tmp_path / "a") as part, open_checkpoint(REAL / "nemo_tp1pp1") as whole:
        assert part.context.fields["num_layers"] == part.context.yaml_fields["num_layers"] == 2
        name = "decoder.layers.{}.mlp.linear_fc2.weight"
        assert part.read(name.format(0)).tobytes() == whole.read(name.format(1)).tobytes()
        assert {
            key for key in part.context.fields if part.context.fields[key] != whole.context.fields[key]
        } == {"num_layers"}


def test_optimizer_state_of_the_layers_goes_along(tmp_path):
    optimizer = REAL / "mcore0140_optim_dp2"
    reshard(optimizer, tmp_path / "a", layers="1", config=REAL / "hf_tiny")
    before, after = (torch_dist.read_metadata(SourceDir(folder)) for folder in (optimizer, tmp_path / "a"))
    assert before.tensors.keys() == after.tensors.keys()
    key = "optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc2.weight"
    assert after.tensors[key].shape == (1, 1, 1, 6144)
    assert after.mcore_data[key]["nd_reformulated_orig_global_shape"] == (1, 64, 96)


def test_the_target_is_named_after_the_layers(tmp_path):
    tiny.write(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    assert reshard(tmp_path / "nemo", layers="1").target == str(tmp_path / "nemo-layers1-tp1-pp1")
    asked = {"stage": 0, "pipeline_parallel_size": 2}
    assert reshard(tmp_path / "nemo", **asked, dry_run=True).target == str(tmp_path / "nemo-stage0-tp1-pp1")


def test_what_is_not_there(tmp_path):
    tiny.write(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with pytest.raises(UsageError, match="has layers 0-1, so not 2"):
        reshard(tmp_path / "nemo", tmp_path / "a", layers="1-2")
    with pytest.raises(UsageError, match="there is no pipeline stage 1"):
        reshard(tmp_path / "nemo", tmp_path / "a", stage=1)
    with pytest.raises(UsageError, match="exclude each other"):
        reshard(tmp_path / "nemo", tmp_path / "a", stage=0, layers="0")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma2", "sliding_window": 8, "query_pre_attn_scalar": 16},
        {
            "model_type": "deepseek_v2",
            "first_k_dense_replace": 1,
            "n_routed_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "n_shared_experts": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": None,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ],
    ids=lambda config: config["model_type"],
)
def test_layers_that_differ_by_number_stay_where_they_are(tmp_path, config):
    base = {k: v for k, v in tiny.CONFIG.items() if k not in ("architectures", "tie_word_embeddings")}
    samples.build(tmp_path / "hf", {**base, **config})
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with pytest.raises(UnsupportedConfig, match="tells layers apart by their numbers"):
        reshard(tmp_path / "nemo", tmp_path / "a", layers="1")
