"""MiMo: the table's own tests, with and without layers that predict further tokens, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.mappings import samples
from nemoconv.testing import MappingTests, data_of

from .dense import assert_refused, config


class TestMiMo(MappingTests):
    config = config("mimo", num_nextn_predict_layers=1, attention_bias=True)


class TestMiMoOfTwoLayers(MappingTests):
    config = config("mimo", num_nextn_predict_layers=2, head_dim=16)


class TestMiMoWithout(MappingTests):
    config = config("mimo")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", False),
        ("use_mrope", True),
        ("use_sliding_window", True),
        ("num_nextn_predict_layers", 17),
        ("auto_map", {"AutoModelForCausalLM": "modeling_other.Other"}),
        ("hidden_act", "gelu"),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    assert_refused("mimo", key, value)


def test_without_a_manifest_it_is_found_by_its_further_layers(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", config("mimo", num_nextn_predict_layers=1))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert data_of(tmp_path / "back") == data_of(tmp_path / "hf")
    assert "MiMoForCausalLM" in (tmp_path / "back/config.json").read_text()
