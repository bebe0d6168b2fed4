"""No value of any key of any config.json is a bug of ours: it converts, or it is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import plan
from nemoconv.errors import NemoconvError
from nemoconv.mappings import table_for

from . import builder, configs

#: kinds and sizes that no config of a model has, and shapes of scaling that lack or mistake something
ODD: tuple[Any, ...] = (
    None, [], {}, "", True, False, 0, -1, 1, 3, 2**70, 10**400, -(2**63), 1.5, -0.0, 1e-300, 1e300,
    float("nan"), float("inf"), "x" * 3000, "1", "\x1b[31m", [1], [None], [[]], [{}], [2**70], [0.5] * 3, {"a": 1},
    {"type": []}, {"rope_type": []}, {"rope_type": "yarn", "factor": 0}, {"type": "linear", "factor": "x"},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}, {"quant_method": []},
    {"type": "longrope", "long_factor": [], "short_factor": None}, ["full_attention"], {"__float__": "nan"},
    {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1, "high_freq_factor": 1,
     "original_max_position_embeddings": 0}, {"full_attention": []}, {"0": 1},
)  # fmt: skip
#: keys that no rule owns and that are looked at all the same
ALWAYS = (
    "architectures",
    "model_type",
    "auto_map",
    "quantization_config",
    "layer_types",
    "text_config",
    "dtype",
)


@pytest.mark.parametrize("name", sorted(configs.MODELS))
def test_every_key_with_odd_values(name: str, tmp_path: Path) -> None:
    chosen = random.Random(name)
    config = configs.config(name)
    source = builder.build(tmp_path / "source", config)
    keys = {*config, *ALWAYS, *(key for rule in table_for(config, name).fields for key in rule.hf_keys)}
    for key in sorted(keys):
        for value in chosen.sample(ODD, 4):
            (source / "config.json").write_text(json.dumps({**config, key: value}))
            to = chosen.choice(["nemo2", "nemo2", "onnx", "nemo"])
            out = tmp_path / ("out.nemo" if to == "nemo" else "out")
            try:
                plan(source, out, to=to)
            except NemoconvError as error:
                assert error.exit_code != 70, (key, value, to)
            except Exception as error:
                raise AssertionError(f"{key}={value!r} to {to}: {type(error).__name__}: {error}") from error
