"""Qwen 3: the table's own tests, and transformers' defaults."""

from __future__ import annotations

from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("qwen3", head_dim=16)


class TestQwen3(MappingTests):
    config = CONFIG


class TestQwen3Tied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("qwen3", "Qwen3Config")


def test_the_longest_text_is_what_nemo_exports() -> None:
    assert dense.read_nemo("qwen3")["seq_length"] == 40960
    assert dense.read_nemo("qwen3", seq_length=8, max_position_embeddings=77)["seq_length"] == 77
