"""Qwen 2: the table's own tests, and transformers' defaults."""

from __future__ import annotations

from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("qwen2", use_sliding_window=False, sliding_window=64, max_window_layers=1)


class TestQwen2(MappingTests):
    config = CONFIG


class TestQwen2Tied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("qwen2", "Qwen2Config")
