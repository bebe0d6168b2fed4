"""Every model type that transformers has is converted, or refused with what is in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemoconv.errors import UnsupportedArchitecture
from nemoconv.mappings import architectures, load_table, nearest
from nemoconv.mappings.hf import keys_read
from nemoconv.mappings.refused import NO_COUNTERPART

LISTED = json.loads(Path(str(keys_read.__file__)).with_suffix(".json").read_text())
TYPES = sorted({*LISTED["models"], *LISTED["whole"].split()} - {*architectures(), *NO_COUNTERPART})


def test_every_type_without_a_table_has_a_reason() -> None:
    assert len(TYPES) > 600
    for kind in TYPES:
        with pytest.raises(UnsupportedArchitecture, match=f"architecture '{kind}'") as caught:
            load_table(kind)
        hint = str(caught.value.hint)
        assert hint.startswith(("its code in transformers is built on", "it is ", "it has ")), (kind, hint)


@pytest.mark.parametrize(
    ("kind", "near"),
    [("iquestcoder", "llama"), ("xlm-roberta", "bert"), ("gemma4_text", "gemma3_text"), ("solar_open", "glm4_moe"),
     ("vaultgemma", "gemma2"), ("ministral", "qwen2"), ("mellum", "qwen3_moe")],
)  # fmt: skip
def test_the_nearest_is_what_the_code_is_built_on(kind: str, near: str) -> None:
    assert nearest.nearest(kind, architectures()) == near


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        load_table("falcon_h1")
    assert "mamba_d_ssm" in nearest.keys_beyond("falcon_h1", "llama")
    assert "the nearest with a table, and reads attention_in_multiplier" in str(caught.value.hint)
    with pytest.raises(UnsupportedArchitecture) as caught:
        load_table("vit")
    assert "it is a model for image" in str(caught.value.hint)


def test_a_name_spelled_otherwise_is_guessed() -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        load_table("lama")
    assert caught.value.hint == "did you mean 'llama'?"
