"""Gemma: the table's own tests, and transformers' defaults."""

from __future__ import annotations

from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("gemma", head_dim=16, hidden_act="gelu", hidden_activation=None)


class TestGemma(MappingTests):
    config = CONFIG


class TestGemmaUntied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": False}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("gemma", "GemmaConfig")
