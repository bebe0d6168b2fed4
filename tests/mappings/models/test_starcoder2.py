"""StarCoder2: the table's own tests, and transformers' defaults."""

from __future__ import annotations

import pytest

from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("starcoder2", sliding_window=20, residual_dropout=0.1, embedding_dropout=0.1)


class TestStarcoder2(MappingTests):
    config = CONFIG


class TestStarcoder2Untied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": False}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("starcoder2", "Starcoder2Config")


@pytest.mark.parametrize(("activation", "fused"), [("gelu_pytorch_tanh", True), ("gelu", False)])
def test_the_fused_kernel_is_what_makes_the_gelu_approximate(activation: str, fused: bool) -> None:
    table = load_table("starcoder2")
    config, _ = read_config(table.fields, {**CONFIG, "hidden_act": activation})
    assert table.nemo.write(config)[1]["bias_activation_fusion"] is fused
    assert dense.read_nemo("starcoder2", bias_activation_fusion=fused)["hidden_act"] == activation


def test_nemo_by_default_computes_gelu_by_tanh() -> None:
    assert dense.read_nemo("starcoder2")["hidden_act"] == "gelu_pytorch_tanh"


def test_what_released_files_also_say_changes_nothing() -> None:
    more = {"norm_type": "layer_norm", "mlp_type": "default", "scale_attn_weights": True}
    fields = load_table("starcoder2").fields
    assert read_config(fields, {**CONFIG, **more})[0] == read_config(fields, CONFIG)[0]
