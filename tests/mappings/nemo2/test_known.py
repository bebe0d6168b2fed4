"""Every field of NeMo 2's config classes is known, and in one place."""

from __future__ import annotations

import dataclasses

import pytest

from nemoconv.mappings.nemo2 import classes
from nemoconv.mappings.nemo2.known import INERT, MAPPED, OFF, ONLY_WITH

#: of GPTConfig in NeMo 2.7.3, and not in that of the file
_NEWER = "use_transformer_engine_op_fuser"


def places(field: str) -> list[str]:
    groups = {"MAPPED": MAPPED, "OFF": OFF, "INERT": INERT, **ONLY_WITH}
    return [name for name, group in groups.items() if field in group]


def test_every_field_of_megatron_core_is_known_and_in_one_place() -> None:
    config = pytest.importorskip("megatron.core.transformer.transformer_config")
    fields = [field.name for field in dataclasses.fields(config.TransformerConfig)]
    assert len(fields) > 150
    named = {*fields, *classes.defaults("GPTConfig"), _NEWER}
    wrong = {field: places(field) for field in named if len(places(field)) != 1}
    assert wrong == {}, "a new megatron-core? say what these fields do"


def test_the_default_of_megatron_core_is_off() -> None:
    config = pytest.importorskip("megatron.core.transformer.transformer_config")
    defaults = {field.name: field.default for field in dataclasses.fields(config.TransformerConfig)}
    wrong = {name: defaults[name] for name in OFF if name in defaults and defaults[name] not in OFF[name]}
    assert wrong == {}


def test_no_field_is_in_two_places() -> None:
    everything = [
        *MAPPED,
        *OFF,
        *INERT,
        *(field for group in ONLY_WITH.values() for field in group),
    ]
    assert len(everything) == len(set(everything))
    assert set(ONLY_WITH) <= set(OFF)


def test_the_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OFF["qk_layernorm"] = (True,)  # type: ignore[index]
