"""Nemotron: the table's own tests, and transformers' defaults."""

from __future__ import annotations

from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("nemotron", head_dim=16)


class TestNemotron(MappingTests):
    config = CONFIG


class TestNemotronTied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("nemotron", "NemotronConfig")


def test_what_released_files_also_say_changes_nothing() -> None:
    more = {"kv_channels": 128}
    fields = load_table("nemotron").fields
    assert read_config(fields, {**CONFIG, **more})[0] == read_config(fields, CONFIG)[0]
