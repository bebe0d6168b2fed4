"""Layers that predict further tokens: names of both sides, config keys, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import LayoutError, UnsupportedConfig
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.mappings.mtp import FurtherFields, FurtherLayers
from nemoconv.mappings.table import Depth, check_layout
from nemoconv.tensors.layout import Layout

from .models.test_deepseek_v3 import CONFIG

TABLE = load_table("deepseek_v3")


def test_a_depth_is_counted_from_0_or_behind_the_last_layer() -> None:
    assert "mtp.layers.{depth}, model.layers.{depth:beyond}".format(depth=Depth(1, 61)) == (
        "mtp.layers.1, model.layers.62"
    )


def test_names_of_both_sides() -> None:
    config, _ = read_config(TABLE.fields, {**CONFIG, "num_nextn_predict_layers": 2})
    found = {
        part.hf.format(**each.index): each.nemo
        for each in TABLE.instances(config, TABLE.sizes(config))
        for part in each.rule.parts
    }
    last = {hf: nemo for hf, nemo in found.items() if hf.startswith("model.layers.5.")}
    assert {nemo.partition("mtp.layers.1.")[1] for nemo in last.values()} == {"mtp.layers.1."}
    assert last["model.layers.5.shared_head.norm.weight"] == "mtp.layers.1.final_layernorm.weight"
    assert last["model.layers.5.eh_proj.weight"] == "mtp.layers.1.eh_proj.weight"
    inner = "mtp.layers.1.transformer_layer."
    assert last["model.layers.5.mlp.gate.e_score_correction_bias"] == inner + "mlp.router.expert_bias"
    assert last["model.layers.5.mlp.experts.7.up_proj.weight"] == (
        inner + "mlp.experts.local_experts.7.linear_fc1.weight"
    )
    # a layer of experts as the decoder's last, and four tensors more
    assert len(last) == sum(hf.startswith("model.layers.3.") for hf in found) + 4
    assert not any(hf.startswith("model.layers.6.") for hf in found)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 1),  # transformers' default
        ({"num_nextn_predict_layers": 0}, 0),
        ({"num_mtp_layers": 2}, 2),
        ({"num_mtp_layers": 2, "num_nextn_predict_layers": 2}, 2),
        ({"num_nextn_predict_layers": None}, 0),
    ],
)
def test_how_many_there_are(given: dict[str, object], count: int) -> None:
    config: dict[str, object] = {}
    FurtherLayers().read(given, config)
    assert config == {"mtp_num_layers": count}
    hf: dict[str, object] = {}
    FurtherLayers().write(config, hf)
    assert hf == {"num_nextn_predict_layers": count}


@pytest.mark.parametrize(
    "given",
    [
        {"num_nextn_predict_layers": 17},
        {"num_nextn_predict_layers": -1},
        {"num_nextn_predict_layers": True},
        {"num_nextn_predict_layers": "1"},
        {"num_nextn_predict_layers": 1, "num_mtp_layers": 2},
    ],
)
def test_what_is_no_number_of_them_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(UnsupportedConfig, match="num_nextn_predict_layers"):
        FurtherLayers().read(given, {})


def test_nemo_counts_them_and_weighs_their_loss_only_where_there_are_any() -> None:
    for count, written in ((0, {}), (2, {"mtp_num_layers": 2, "mtp_loss_scaling_factor": 0.1})):
        fields: dict[str, object] = {}
        FurtherFields().write({"mtp_num_layers": count}, fields)
        assert fields == written
        config: dict[str, object] = {}
        FurtherFields().read(fields, config)
        assert config == {"mtp_num_layers": count}
    with pytest.raises(UnsupportedConfig, match="mtp_num_layers"):
        FurtherFields().read({"mtp_num_layers": 1.5}, {})


def test_their_projection_is_cut_by_its_rows() -> None:
    """The hidden size has to divide, but only for a model that has such layers."""
    config, _ = read_config(TABLE.fields, {**CONFIG, "hidden_size": 33, "num_nextn_predict_layers": 1})
    with pytest.raises(LayoutError, match=r"eh_proj.*hidden_size=33"):
        check_layout(TABLE, config, TABLE.sizes(config), Layout(2))
    config["mtp_num_layers"] = 0
    check_layout(TABLE, config, TABLE.sizes(config), Layout(2))
    assert write_config(TABLE.fields, config)["num_nextn_predict_layers"] == 0
