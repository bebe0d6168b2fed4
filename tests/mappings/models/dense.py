"""What the tests of the dense architectures share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config

SIZES: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "rope_theta": 50000.0,
    "torch_dtype": "bfloat16",
}


def config(architecture: str, **changes: Any) -> dict[str, Any]:
    """A tiny config.json."""
    table = load_table(architecture)
    return {"model_type": architecture, "architectures": [table.hf_class], **SIZES, **changes}


def assert_defaults_of_transformers(architecture: str, config_class: str) -> None:
    """A missing key means what transformers takes for it."""
    transformers = pytest.importorskip("transformers")
    fields = load_table(architecture).fields
    theirs = getattr(transformers, config_class)().to_dict()
    ours = read_config(fields, {"model_type": architecture})[0]
    assert read_config(fields, theirs)[0] == ours


def assert_refused(architecture: str, key: str, value: Any) -> None:
    """A key with this value is refused by its name, on the way in or when NeMo has no words for it."""
    table = load_table(architecture)
    with pytest.raises(UnsupportedConfig, match=f"{key}|rotary scaling of type"):
        table.nemo.write(read_config(table.fields, config(architecture, **{key: value}))[0])


#: what NeMo's importers set, in part
GIVEN = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 67,
}


def read_nemo(architecture: str, **fields: Any) -> dict[str, Any]:
    """The model config of the NeMo config class that we write, with these fields set."""
    nemo = load_table(architecture).nemo
    symbol = Symbol(nemo.module, nemo.config)
    given = {**GIVEN, **fields}
    assert table_for_nemo(symbol, given, "test").architecture == architecture
    return nemo.read(symbol, given, "test")


def assert_nemo_refused(architecture: str, field: str, value: Any) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        read_nemo(architecture, **{field: value})
