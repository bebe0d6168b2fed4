"""Mistral: the table's own tests, and transformers' defaults."""

from __future__ import annotations

import pytest

from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("mistral", head_dim=16, sliding_window=20)


class TestMistral(MappingTests):
    config = CONFIG


class TestMistralTied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("mistral", "MistralConfig")


@pytest.mark.parametrize(("window", "size"), [(None, None), (1, [0, 0]), (4096, [4095, 0])])
def test_a_window_counts_the_token_itself_in_one_place_only(
    window: int | None, size: list[int] | None
) -> None:
    table = load_table("mistral")
    config, _ = read_config(table.fields, {**CONFIG, "sliding_window": window})
    assert table.nemo.write(config)[1]["window_size"] == size
    assert dense.read_nemo("mistral", window_size=size)["sliding_window"] == window


def test_nemo_takes_a_window_that_is_not_set_for_4096_tokens_back() -> None:
    assert dense.read_nemo("mistral")["sliding_window"] == 4097
    assert dense.read_nemo("mistral", window_size=(-1, 0))["sliding_window"] is None
